"""Train MEND with the recipe of configs/train/mend_atlas.yaml and score it on facts it never saw.

Run:  python benchmarks/quality/mend_atlas.py
"""

import argparse
import json
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
from lightning_edit.editors import MEND
from lightning_edit.edits.edit_loop import (
    Stopwatch,
    deltas_alone,
    encode_cases,
    written_alone,
)
from lightning_edit.edits.ledger import Ledger
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.metrics.aspects import summarise
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/train/mend_atlas.yaml"
CHECKPOINT = ROOT / "runs/mend-atlas/checkpoints/best.ckpt"


def measure(edits: int | None) -> dict[str, Any]:
    """Edit every held-out request alone, as protocol single does, and score it."""
    model, tokenizer = load_language_model("atlas")
    editor = MEND(checkpoint=str(CHECKPOINT)).bind(model, tokenizer)
    requests = AtlasDataModule(limit=edits, split="test").edit_requests()
    probes = {request.id: probes_of(request) for request in requests}
    scorer = Scorer(model, tokenizer, modes=("tf",))
    baseline = Baseline(scorer.score([probe for each in probes.values() for probe in each]))
    watch, scores = Stopwatch(), []
    batches = list(encode_cases(tokenizer, [[request] for request in requests], size=1))
    found = watch.over(deltas_alone(editor, batches))
    for case, _ in written_alone(Ledger(model), found):
        scores += baseline.compare(scorer.score(probes[case.ids[0]]))
    metrics = {name: round(value, 4) for name, value in summarise(scores).items()}
    return {
        "split": "test",
        "protocol": "single",
        "edits": len(requests),
        "batches_trained": int(editor.trained_batches),
        "parameters": sum(parameter.numel() for parameter in editor.parameters()),
        "language_model": weights_hash(model),
        "cpu_seconds_per_edit": round(watch.cpu / len(requests), 4),
        "metrics": metrics,
    }


def main() -> None:
    """Train, score, and keep the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, help="held-out edits; all when left out")
    parser.add_argument("--score-only", action="store_true", help="score the last training again")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/mend_atlas.json")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": machine(), "config": CONFIG}
    if not options.score_only:
        begin = time.monotonic()
        command = [sys.executable, "-m", "lightning_edit", "fit", "--config", CONFIG]
        subprocess.run(command, cwd=ROOT, check=True)
        record["training_wall_seconds"] = round(time.monotonic() - begin, 1)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        record["training_cpu_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    record |= measure(options.edits)
    print(json.dumps(record["metrics"], indent=2))
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
