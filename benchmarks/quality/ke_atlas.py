"""Train KE with the recipe of configs/train/ke_atlas.yaml and score it on facts it never saw.

Run:  python benchmarks/quality/ke_atlas.py
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import KE
from lightning_edit.edits.edit_loop import Stopwatch, deltas_alone, encode_cases, written_alone
from lightning_edit.edits.ledger import Ledger
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.metrics.aspects import summarise
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/train/ke_atlas.yaml"
RUN = ROOT / "runs/ke-atlas"
#: Columns of the curve.
CURVE = ("train/edit_nll", "train/locality_kl", "train/alpha_kl", "train/margin_kl")
SCORES = ("val/reliability/em@tf", "val/generalization/em@tf", "val/locality/kept@tf")


def measure(edits: int | None, rounds: int) -> dict[str, Any]:
    """Edit held-out requests alone, as protocol single does, and score them."""
    model, tokenizer = load_language_model("atlas")
    checkpoint = RUN / "checkpoints/best.ckpt"
    editor = KE(checkpoint=str(checkpoint), rounds=rounds).bind(model, tokenizer)
    requests = AtlasDataModule(limit=edits, split="test").edit_requests()
    probes = {request.id: probes_of(request) for request in requests}
    scorer = Scorer(model, tokenizer, modes=("tf",))
    baseline = Baseline(scorer.score([probe for each in probes.values() for probe in each]))
    watch, scores, used = Stopwatch(), [], []
    batches = list(encode_cases(tokenizer, [[request] for request in requests], size=1))
    for case, trial in written_alone(Ledger(model), watch.over(deltas_alone(editor, batches))):
        used.append(trial.delta.info.get("rounds", 1))
        scores += baseline.compare(scorer.score(probes[case.ids[0]]))
    metrics = {name: round(value, 4) for name, value in summarise(scores).items()}
    return {
        "rounds": rounds,
        "rounds_used": round(sum(used) / len(used), 2),
        "edits": len(requests),
        "batches_trained": int(editor.trained_batches),
        "parameters": sum(parameter.numel() for parameter in editor.parameters()),
        "language_model": weights_hash(model),
        "cpu_seconds_per_edit": round(watch.cpu / len(requests), 4),
        "metrics": metrics,
    }


def curve() -> list[dict[str, float]]:
    """Return every fifth row of the training log, and every validation."""
    rows = []
    for file in sorted(RUN.glob("logs/*/metrics.csv")):
        with file.open() as lines:
            for number, row in enumerate(csv.DictReader(lines)):
                kept = SCORES if row.get(SCORES[0]) else CURVE
                if kept is SCORES or number % 5 == 0:
                    values = {name: round(float(row[name]), 4) for name in kept if row.get(name)}
                    rows.append({"step": float(row["step"]), **values})
    return rows


def main() -> None:
    """Train, score with and without the loop, and keep the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, help="held-out edits; all when left out")
    parser.add_argument("--score-only", action="store_true", help="score the last training again")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/ke_atlas.json")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "machine": machine(),
        "command": "python benchmarks/quality/ke_atlas.py",
        "config": CONFIG,
        "split": "test",
        "protocol": "single",
    }
    if not options.score_only:
        begin = time.monotonic()
        command = [sys.executable, "-m", "lightning_edit", "fit", "--config", CONFIG]
        subprocess.run(command, cwd=ROOT, check=True)
        record["training_wall_seconds"] = round(time.monotonic() - begin, 1)
    record["curve"] = curve()
    record["once"] = measure(options.edits, rounds=1)
    record["loop"] = measure(options.edits, rounds=5)
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
