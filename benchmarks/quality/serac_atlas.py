"""Train SERAC with the recipe of configs/train/serac_atlas.yaml and score it on held-out facts.

Run:  python benchmarks/quality/serac_atlas.py
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import SERAC
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import ProbeScore, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.metrics.aspects import summarise
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/train/serac_atlas.yaml"
RUN = ROOT / "runs/serac-atlas"
BARS = {
    "reliability/answer@gen": 0.9,
    "generalization/answer@gen": 0.9,
    "locality/kept@tf": 0.9,
}


def train() -> dict[str, Any]:
    """Train from scratch on one thread."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "lightning_edit", "fit", "--config", CONFIG]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, check=True, env=alone)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "training_wall_seconds": round(time.monotonic() - begin, 1),
        "training_cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    }


def curve() -> list[dict[str, float]]:
    """Return the learning curve that the training's logger wrote, by optimiser step."""
    path = max((RUN / "logs").glob("version_*/metrics.csv"), key=lambda one: one.stat().st_mtime)
    points: dict[int, dict[str, float]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            found = {name: round(float(text), 4) for name, text in row.items() if text}
            points.setdefault(int(found.pop("step")), {}).update(found)
    return [{"step": step + 1, **values} for step, values in sorted(points.items())]


def measure(edits: int | None, checkpoint: Path) -> dict[str, Any]:
    """Score held-out edits, each alone and then all of them in force together."""
    model, tokenizer = load_language_model("atlas")
    editor = SERAC(checkpoint=str(checkpoint)).bind(model, tokenizer)
    requests = AtlasDataModule(limit=edits, split="test").edit_requests()
    bare = Scorer(model, tokenizer)
    baseline = Baseline(bare.score([one for request in requests for one in probes_of(request)]))
    before = weights_hash(model)
    begin, handle = time.process_time(), editor.edit_model(model, tokenizer, requests[:1])
    responder = editor.responder(handle.ledger.in_force)
    scorer = Scorer(model, tokenizer, responder=responder)

    def score(request: EditRequest) -> list[ProbeScore]:
        return baseline.compare(scorer.score(probes_of(request)))

    single = score(requests[0])
    for request in requests[1:]:
        handle.undo().edit(request)
        single += score(request)
    handle.undo()
    for request in requests:
        handle.edit(request)
    sequential = [one for request in requests for one in score(request)]
    overlap = about_other_edits(requests)
    return {
        "split": "test",
        "edits": len(requests),
        "batches_trained": int(editor.trained_batches),
        "parameters": {
            "classifier": sum(one.numel() for one in editor.scope.parameters()),
            "counterfactual": sum(one.numel() for one in editor.other.parameters()),
        },
        "language_model": before,
        "language_model_unchanged": weights_hash(model) == before,
        "scoring_cpu_seconds": round(time.process_time() - begin, 1),
        "single": _summary(single),
        "sequential": _summary(sequential),
        "single_by_kind": _by_kind(single),
        "sequential_by_kind": _by_kind(sequential),
        "locality_probes": sum(one.expect == "unchanged" for one in sequential),
        "locality_probes_about_other_edits": len(overlap),
        "sequential_without_these": _summary(
            [one for one in sequential if (one.edit_id, one.prompt) not in overlap]
        ),
    }


def _summary(scores: list[ProbeScore]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in summarise(scores).items()}


def _by_kind(scores: list[ProbeScore]) -> dict[str, dict[str, float]]:
    """Return plain means over probes, for a look at what fails."""
    found: dict[str, dict[str, list[float]]] = {}
    for one in scores:
        for name, value in one.measures().items():
            if name in ("answer@gen", "em@tf", "kept@tf", "kept@gen"):
                found.setdefault(one.kind, {}).setdefault(name, []).append(value)
    return {
        kind: {name: round(sum(v) / len(v), 4) for name, v in sorted(named.items())}
        for kind, named in sorted(found.items())
    }


def about_other_edits(requests: list[EditRequest]) -> set[tuple[str, str]]:
    """List locality probes whose own fact is edited too: they should change in a sequence."""
    edited = {one.triple[:2] for one in requests if one.triple is not None}
    return {
        (request.id, probe.prompt)
        for request in requests
        for probe in request.probes
        if probe.expect == "unchanged" and probe.path and probe.path[-1][:2] in edited
    }


def main() -> None:
    """Train, score, and keep result and learning curve as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, help="held-out edits; all when left out")
    parser.add_argument("--score-only", action="store_true", help="score the last training again")
    parser.add_argument("--checkpoint", type=Path, default=RUN / "checkpoints/best.ckpt")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/serac_atlas.json")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": machine(), "config": CONFIG}
    if not options.score_only:
        record |= train()
    record |= measure(options.edits, options.checkpoint)
    record["bars"] = {
        f"{protocol} {name}": {"least": least, "got": record[protocol][name]}
        for protocol in ("single", "sequential")
        for name, least in BARS.items()
    }
    record["curve"] = curve()
    print(json.dumps(record["bars"], indent=2))
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
