"""What foretells that an edit moves a fact: DDA, gradients, hidden states, key overlap, distance.

Each of 100 edits of the atlas is written alone on the unedited model, by MEMIT and by ROME, and 400
facts that the model knows are scored again. Every predictor is read on the unedited model; DDA also
on the checkpoints of a fine-tuning. AUC of "the fact moved" over all pairs of edit and fact, with a
bootstrap over edits.

Run:  python benchmarks/quality/edit_ripples.py
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from lightning_edit.analysis.training_data.attribution import TrainingDataAttributor
from lightning_edit.analysis.training_data.checkpoints import checkpoint_paths
from lightning_edit.analysis.training_data.fine_tuning import TextFineTuning
from lightning_edit.analysis.training_data.index import IndexSettings
from lightning_edit.analysis.training_data.planted import PlantedTextDataModule
from lightning_edit.analysis.training_data.rows import TracedFact, TrainingText
from lightning_edit.atlas.facts import atlas_facts
from lightning_edit.atlas.graph import load_atlas
from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import MEMIT, ROME
from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.shares import shares_of
from lightning_edit.evaluation.fact_reader import FactReader
from lightning_edit.evaluation.knowledge_graph import FactGraph, triple_of
from lightning_edit.functional.ripple import cosine
from lightning_edit.inference.hidden_states import read_last
from lightning_edit.inference.output_gradients import output_gradients
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest
from lightning_edit.types.facts import Fact

ROOT = Path(__file__).resolve().parents[2]
#: Changes of the mean log-probability of an answer token, in nats: any move, and harm.
MOVED, HARMED = 0.1, float(np.log(2))
#: MEMIT with the settings of configs/method/atlas.
EDITORS: dict[str, Callable[[], LocateThenEdit]] = {
    "MEMIT": lambda: MEMIT(steps=40, moment_weight=200.0, clamp=2.0),
    "ROME": ROME,
}
TITLES = {
    "key_overlap": "key overlap",
    "output_change": "norm of the layers' change",
    "gradient_cosine": "gradient cosine",
    "hidden_cosine": "hidden-state cosine",
    "graph_distance": "graph distance",
    "dda": "DDA",
    "dda_no_debias": "DDA without debias",
    "first_order": "first-order effect",
    "trial": "the same of a trial edit by ROME",
    "fall": "first-order fall",
}
#: The fine-tuning whose checkpoints DDA reads.
FINE_TUNING = ROOT / "configs/train/planted_facts_atlas.yaml"
_RESAMPLES, _PER_STEP = 100, 20


def main() -> None:
    """Measure, keep the result as JSON, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--facts", type=int, default=400)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/edit_ripples.json")
    parser.add_argument("--pairs", type=Path, help="folder for the values of all pairs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    used = time.process_time()
    model, tokenizer = load_language_model("atlas")
    encoder = PromptEncoder.for_model(model, tokenizer)
    requests = AtlasDataModule(limit=options.edits, split="test").edit_requests()
    graph = FactGraph(atlas_facts(load_atlas()))
    reader = FactReader(model, encoder)
    right = [one.right for one in reader.outcomes(graph.facts)]
    known = list(compress(range(len(right)), right))
    chosen = sorted(random.Random(0).sample(known, min(options.facts, len(known))))
    facts = [graph.facts[n] for n in chosen]
    before, hidden = reader.read(facts)
    edits = [Fact(*triple_of(one), one.prompt, (one.target,), one.subject) for one in requests]
    shared = {
        "hidden_cosine": cosine(reader.read(edits)[1], hidden),
        "graph_distance": torch.tensor(
            [[-99.0 if d is None else -float(d) for d in _only(graph.distances(one), chosen)]
             for one in requests]
        ),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        shared |= _dda(model, encoder, requests, facts, Path(folder))
    print(f"DDA: {time.process_time() - used:.0f} CPU s", flush=True)
    # The edited fact itself is no neighbour of its edit.
    counted = torch.tensor([[not e for e in _only(graph.is_edited([r]), chosen)] for r in requests])
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for name in EDITORS:
        editor = EDITORS[name]().bind(model, encoder)
        assert isinstance(editor, LocateThenEdit)
        modules = [editor.view.down_projection(layer) for layer in editor.edited_layers]
        predictors = dict(shared)
        predictors["gradient_cosine"] = _gradient_cosine(editor, edits, facts, modules).abs()
        rows = _encoded(encoder, facts)
        texts = [
            TokenizedText(n, prompt[: last + 1], last) for n, (prompt, _, last) in enumerate(rows)
        ]
        keys = read_last(editor.view, texts, dict.fromkeys(modules, "input"), 256)
        gradients = output_gradients(model, [(p, a) for p, a, _ in rows], modules, 64)
        changes, per_edit = [], {"key_overlap": [], "output_change": [], "first_order": []}
        per_edit["fall"] = []
        for start in range(0, len(requests), _PER_STEP):
            batch = encode_batch(encoder, requests[start : start + _PER_STEP])
            for delta in editor.edit_independent(batch):
                with delta.applied(model):
                    after = reader.outcomes(facts)
                changes.append([a.nll - b.nll for a, b in zip(after, before, strict=True)])
                for key, value in _foretold(delta, keys, gradients).items():
                    per_edit[key].append(value)
            print(
                f"{name}: {len(changes)} edits, {time.process_time() - used:.0f} CPU s", flush=True
            )
        predictors |= {key: torch.stack(values) for key, values in per_edit.items()}
        found[name] = torch.tensor(changes), predictors
    answers = {}
    for name, (changed, predictors) in found.items():
        # What RippleCallback can know before an edit of any method.
        predictors["trial"] = found["ROME"][1]["first_order"]
        if options.pairs is not None:
            torch.save((changed, predictors, counted), options.pairs / f"{name}.pt")
        answers[name] = _assess(changed, predictors, counted)
    record = {
        "machine": machine(),
        "language_model": weights_hash(model),
        "edits": len(requests),
        "facts": len(facts),
        "moved_nats": MOVED,
        "harmed_nats": HARMED,
        "resamples": _RESAMPLES,
        "editors": answers,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _draw(record, options.out.with_suffix(".svg"))
    print(json.dumps(answers, indent=2))


def _only(values: Sequence[Any], chosen: Sequence[int]) -> list[Any]:
    return [values[number] for number in chosen]


def _encoded(
    encoder: PromptEncoder, facts: Sequence[Fact]
) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Tokenise facts: prompt, answer, and the position of the subject's last token."""
    found = []
    for fact in facts:
        end = fact.subject_end
        span = None if end is None else (end - len(fact.subject_text or fact.subject), end)
        (one,) = encoder.encode([PromptText(fact.prompt, fact.answers[0], span)])
        last = len(one.prompt) - 1 if one.subject_last is None else one.subject_last
        found.append((one.prompt, one.answer, last))
    return found


def _gradient_cosine(
    editor: LocateThenEdit, edits: Sequence[Fact], facts: Sequence[Fact], modules: Sequence[str]
) -> Tensor:
    """Return cosines of the gradients of answers by the edited weights, (edits, facts)."""

    def flat(listed: Sequence[Fact]) -> Tensor:
        rows = [(prompt, answer) for prompt, answer, _ in _encoded(editor.prompts, listed)]
        read = output_gradients(editor.language_model, rows, modules, 64)
        parts = [
            torch.cat([(r.layers[m].log_prob.mT @ r.layers[m].inputs).flatten() for m in modules])
            for r in read
        ]
        return torch.nn.functional.normalize(torch.stack(parts).float())

    return flat(edits) @ flat(facts).mT


def _dda(
    model: Any,
    encoder: PromptEncoder,
    requests: Sequence[EditRequest],
    facts: Sequence[Fact],
    folder: Path,
) -> dict[str, Tensor]:
    """Return |DDA| of the edit's new answer against its old one, and the fact, (edits, facts).

    As `lightning-edit attribute-training` computes it, with the fact in the place of a training
    text: gradients of the MLP down-projections at θ₀, the model of the package, and after each
    epoch of a fine-tuning of it on other statements.
    """
    config = yaml.safe_load(FINE_TUNING.read_text(encoding="utf-8"))
    seed_everything(config["seed_everything"], verbose=False)
    saving = config["trainer"]["callbacks"][0]["init_args"] | {"dirpath": folder / "epochs"}
    trainer = Trainer(
        accelerator="cpu", max_epochs=config["trainer"]["max_epochs"], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[ModelCheckpoint(**saving)],
    )  # fmt: skip
    trainer.fit(
        TextFineTuning(**config["model"]["init_args"]),
        PlantedTextDataModule(**config["data"]["init_args"]),
    )
    attributor = TrainingDataAttributor(
        model,
        encoder,
        checkpoint_paths([folder / "epochs"]),
        [TrainingText(str(n), one.answers[0], one.prompt) for n, one in enumerate(facts)],
        IndexSettings(),
        folder / "index",
    )
    asked = [TracedFact(one.id, one.prompt, one.target, one.old_target) for one in requests]
    scores = attributor.gradient_scores(attributor.products(asked))
    return {name: scores[name].mT.abs() for name in ("dda", "dda_no_debias")}


def _foretold(
    delta: Delta, keys: Mapping[str, Tensor], gradients: Sequence[Any]
) -> dict[str, Tensor]:
    """Return what one edit's columns and the facts' keys of the unedited model foretell."""
    overlap = torch.zeros(len(gradients), dtype=torch.float64)
    size, first = torch.zeros_like(overlap), torch.zeros_like(overlap)
    for parameter in delta.weights:
        module = parameter.removesuffix(".weight")
        (share,) = shares_of(delta, parameter)
        assert share.right is not None
        overlap += (keys[module] @ share.right.mT)[:, 0].abs()
        size += share.at(keys[module]).square().sum(1)
        reads = [row.layers[module] for row in gradients]
        along = share.along(
            torch.cat([one.inputs for one in reads]), torch.cat([one.log_prob for one in reads])
        )
        sizes = [len(one.inputs) for one in reads]
        first += torch.stack([part.sum() for part in along.split(sizes)])
    found = {"key_overlap": overlap, "output_change": size.sqrt()}
    return found | {"first_order": first.abs(), "fall": -first}


def _assess(changes: Tensor, predictors: Mapping[str, Tensor], counted: Tensor) -> dict[str, Any]:
    """Return AUC of each predictor for facts that moved and facts that were harmed."""
    answers: dict[str, Any] = {"pairs": int(counted.sum())}
    for label, happened in (("moved", changes.abs() >= MOVED), ("harmed", changes >= HARMED)):
        share = float(happened[counted].float().mean())
        answers[label] = {"share": round(share, 4), "auc": {}}
        for name in TITLES:
            value = predictors[name].double()
            draws = np.random.default_rng(0)
            point = _auc(value, happened, counted, torch.arange(len(value)))
            resampled = [
                _auc(
                    value,
                    happened,
                    counted,
                    torch.from_numpy(draws.integers(0, len(value), len(value))),
                )
                for _ in range(_RESAMPLES)
            ]
            if np.isnan(point):  # nothing of the kind happened
                continue
            low, high = np.nanpercentile(resampled, [2.5, 97.5])
            answers[label]["auc"][name] = [round(float(x), 4) for x in (point, low, high)]
    return answers


def _auc(value: Tensor, happened: Tensor, counted: Tensor, edits: Tensor) -> float:
    use = counted[edits]
    labels = happened[edits][use].long()
    if not 0 < int(labels.sum()) < len(labels):
        return float("nan")
    # Ranks stand for values: the metric takes numbers between 0 and 1 as they are.
    _, ranks = value[edits][use].unique(return_inverse=True)
    return float(binary_auroc(ranks.double() / max(1, int(ranks.max())), labels))


def _draw(record: Mapping[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "edit ripples"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), sharey=True, layout="constrained")
    colours = {"MEMIT": "#2F6DB5", "ROME": "#D1600F"}
    for axis, label in zip(axes, ("moved", "harmed"), strict=True):
        for shift, (editor, found) in enumerate(record["editors"].items()):
            for place, name in enumerate(TITLES):
                if name not in found[label]["auc"]:
                    continue
                point, low, high = found[label]["auc"][name]
                height = -place + 0.12 - 0.24 * shift
                axis.plot([low, high], [height] * 2, color=colours[editor], lw=1.5)
                own = editor if place == 0 else None
                axis.plot([point], [height], "o", ms=4, color=colours[editor], label=own)
        axis.axvline(0.5, color="#999999", lw=0.8)
        axis.set_yticks([-n for n in range(len(TITLES))], list(TITLES.values()))
        shares = "/".join(f"{one[label]['share']:.2%}" for one in record["editors"].values())
        axis.set_title(f"{label} ({shares} of pairs)", fontsize=9)
        axis.set_xlabel("AUC, 95 % interval over edits")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
