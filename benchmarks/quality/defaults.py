"""Write 20 short facts with the class defaults of every editor that needs no training.

Run:  python benchmarks/quality/defaults.py [--models atlas gpt2 smollm2 gemma3 FOLDER …]
                                            [--methods MEMIT FTM ...]
      python benchmarks/quality/defaults.py --facts held_out       (for the confirmation, once)
      python benchmarks/quality/defaults.py --summary benchmarks/results/defaults.json
      (cells that are not under --out stay as they are there)

One JSON a cell under --out; cells that are there are not run again. A method writes its facts in
one batch, or each alone where a batch is not its way. `answer@gen`: the answer is generated first;
`kept@tf`: neighbours answer as before. No table uses these facts: rules of `auto` are chosen on the
`fixing` ones. Of the atlas they are of its splits `val` and, spread over relations, `train`, for
other models the last records of COUNTERFACT (or of zsRE: --source) whose new answer has one or two
words.

Key statistics: of `gpt2` as the Makefile's runs/second-model/statistics.done collects them; of
SmolLM2 and Gemma 3 by `make real-model` and `make second-real-model`; of any other model, given as
its folder or name, by `lightning-edit stats --lm FOLDER --quick`. No rule was chosen on Gemma 3.
`cpu_seconds` are those of the edits and of one look at their answers.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import lightning_edit.editors as editors
from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule, CounterFactDataModule, ZsREDataModule
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.metrics.aspects import request_means
from lightning_edit.models.loading import load_language_model
from lightning_edit.types import EditRequest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
#: Folder of each model, and whether its prompts begin with BOS.
MODELS: dict[str, tuple[str, bool]] = {
    "atlas": ("atlas", False),
    "gpt2": (str(SHARED / "models/counterfact-zsre-gpt2"), True),
    "smollm2": (str(ROOT / "runs/real-model/smollm2-135m-instruct"), False),
    "gemma3": (str(ROOT / "runs/real-model/gemma-3-270m"), False),  # its tokenizer writes BOS
}
#: Editors that write each fact alone: a batch of theirs is a sequence.
SINGLE = ("ROME", "RROME", "KN")
BATCH = (
    "MEMIT", "PMET", "EMMET", "AlphaEdit", "ENCORE", "NSE", "D4S", "RECT", "PRUNE",
    "FT", "FTM", "FTL", "LoRAEdit", "LocFTBF", "UltraEdit",
    "GRACE", "WISE", "MEMOIR", "MELO", "TPatcher", "CaliNet",
    "IKE", "ICE", "RAG", "MemPrompt",
)  # fmt: skip
#: Neighbours of each fact that are scored.
NEIGHBOURS = 2


def short(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Return the requests whose new answer is short, one a subject."""
    found = {r.subject: r for r in requests if len(r.target.split()) <= 2}
    return list(found.values())


def facts(
    model: str, which: str, count: int, source: str = "counterfact"
) -> tuple[list[EditRequest], Any]:
    """Return requests of a model that no table uses, and their data module."""
    if model == "atlas":
        data: Any = AtlasDataModule(split="val" if which == "fixing" else "train")
        listed = data.edit_requests()
        return (listed if which == "fixing" else listed[5 :: len(listed) // count])[:count], data
    if source == "zsre":
        name = "data/zsre/zsre_mend_eval_portability_gpt4.json"
        data = ZsREDataModule(path=str(SHARED / name))
    else:
        folder = SHARED / "data/counterfact"
        data = CounterFactDataModule(
            path=str(folder / "counterfact_500.json"),
            train_path=str(folder / "counterfact-train.json"),  # demonstrations of IKE
        )
    listed = short(data.edit_requests())
    return (listed[-count:] if which == "fixing" else listed[-2 * count : -count]), data


def probes(request: EditRequest) -> list[ScoredProbe]:
    """Return the fact's own prompt, and some neighbours."""
    listed = probes_of(request)
    own = [one for one in listed if one.probe.kind == "rewrite"]
    near = [one for one in listed if one.probe.expect == "unchanged"]
    return own + near[:NEIGHBOURS]


def score(loaded: tuple[Any, Any], requests: Sequence[EditRequest], **how: Any) -> list[ProbeScore]:
    """Score all probes of requests: facts are generated too, neighbours are asked by force alone.

    Args:
        loaded: The language model and its tokenizer.
        requests: The facts.
        how: Other arguments of the scorer.
    """
    listed = [probe for request in requests for probe in probes(request)]
    own = [one for one in listed if one.probe.kind == "rewrite"]
    near = [one for one in listed if one.probe.kind != "rewrite"]
    found = Scorer(*loaded, **how).score(own)
    return found + Scorer(*loaded, modes=["tf"], **how).score(near)


def summarise(scores: Sequence[ProbeScore], names: Sequence[str]) -> dict[str, Any]:
    """Return shares of facts written and of neighbours kept, and which facts were not written."""
    by_fact: dict[str, list[ProbeScore]] = {name: [] for name in names}
    for one in scores:
        by_fact[one.edit_id].append(one)
    means = {name: request_means(listed) for name, listed in by_fact.items()}
    written = {name: one["reliability", "answer@gen"] for name, one in means.items()}
    kept = [one["locality", "kept@tf"] for one in means.values() if ("locality", "kept@tf") in one]
    return {
        "facts": len(names),
        "written": sum(written.values()),
        "neighbours_kept": round(sum(kept) / len(kept), 4) if kept else None,
        "not_written": [name for name, value in written.items() if value < 1],
    }


def measure(
    method: str,
    arguments: dict[str, Any],
    loaded: tuple[Any, Any],
    requests: list[EditRequest],
    data: Any,
    baseline: Baseline,
) -> dict[str, Any]:
    """Write the facts with one editor, and score them."""
    model, tokenizer = loaded
    editor = getattr(editors, method)(**arguments)
    editor.on_stream(data)
    editor.bind(model, tokenizer)
    handle = EditedModel(editor)
    used = time.process_time()
    seconds, found = 0.0, []
    groups = [[one] for one in requests] if method in SINGLE else [requests]
    for group in groups:
        handle.edit(group)
        seconds += time.process_time() - used
        responder = editor.responder(handle.ledger.in_force)
        found += score((model, tokenizer), group, responder=responder)
        handle.undo()
        used = time.process_time()
    host = editor
    while isinstance(getattr(host, "editor", None), editors.Editor):
        host = host.editor
    result = summarise(baseline.compare(found), [one.id for one in requests])
    result |= {"cpu_seconds": round(seconds, 1), "auto": host.chosen}
    return result


def cells(options: argparse.Namespace) -> Iterator[tuple[str, list[tuple[str, Path]]]]:
    """Yield each model with its cells that are still to be run."""
    for model in options.models:
        questions = "-zsre" if options.source == "zsre" and model != "atlas" else ""
        folder = options.out / options.facts / f"{Path(model).name}{questions}"
        tag = f"-{options.tag}" if options.tag else ""
        named = [(method, folder / f"{method}{tag}.json") for method in options.methods]
        yield model, [(method, path) for method, path in named if not path.exists()]


def main() -> None:
    """Run the cells that are missing, or write a summary of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(MODELS),
        help=f"of {', '.join(MODELS)}, or folders and names of others",
    )
    parser.add_argument("--methods", nargs="+", default=[*BATCH, *SINGLE])
    parser.add_argument("--facts", choices=["fixing", "held_out"], default="fixing")
    parser.add_argument("--source", choices=["counterfact", "zsre"], default="counterfact")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument(
        "--arguments", type=json.loads, default={}, help="JSON, other than defaults"
    )
    parser.add_argument("--tag", default="", help="part of the cells' names, with --arguments")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/defaults")
    parser.add_argument("--summary", type=Path, help="write what is there, and run nothing")
    options = parser.parse_args()
    if options.summary:
        return write_summary(options)
    torch.set_num_threads(1)
    plan = list(cells(options))
    total, done, begin = sum(len(listed) for _, listed in plan), 0, time.perf_counter()
    for model, listed in plan:
        if not listed:
            continue
        path, bos = MODELS.get(model, (model, False))
        loaded = load_language_model(path, add_bos=bos)
        requests, data = facts(model, options.facts, options.count, options.source)
        baseline = Baseline(score(loaded, requests))
        for method, place in listed:
            try:
                row = measure(method, options.arguments, loaded, requests, data, baseline)
            except Exception as error:  # noqa: BLE001  # a refusal is a result too
                row = {"error": f"{type(error).__name__}: {error}"}
            row |= {"arguments": options.arguments, "machine": machine()}
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(row, indent=1) + "\n")
            done += 1
            left = (time.perf_counter() - begin) / done * (total - done)
            told = row.get("error") or f"{row['written']:g} of {row['facts']} written"
            kept = row.get("neighbours_kept")
            print(
                f"[{done}/{total}, {left / 60:.0f} min left] {model} {place.stem}: {told[:160]}, "
                f"kept {kept}, {row.get('cpu_seconds')} CPU s, {row.get('auto')}",
                flush=True,
            )
    return None


def write_summary(options: argparse.Namespace) -> None:
    """Write one JSON with all cells: those of the folder in place of older ones of the file.

    ``machine`` is that of cells which name none.
    """
    path = options.summary
    old = json.loads(path.read_text()) if path.exists() else {"machine": machine(), "cells": {}}
    rows = old["cells"] | {
        str(cell.relative_to(options.out).with_suffix("")): json.loads(cell.read_text())
        for cell in options.out.rglob("*.json")
    }
    record = {
        "machine": old["machine"],
        "facts": options.count,
        "cells": dict(sorted(rows.items())),
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
