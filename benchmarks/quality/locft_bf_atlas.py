"""Write 500 facts of the atlas at once with LocFT-BF, and score them.

The settings are those of configs/method/atlas/LocFTBF.yaml.

Run:  python benchmarks/quality/locft_bf_atlas.py
"""

import argparse
import json
import time
from pathlib import Path

import torch
import yaml

from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import LocFTBF
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.metrics.aspects import summarise
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/method/atlas/LocFTBF.yaml"
#: Facts whose answers are also generated, which takes longer.
GENERATED = 100


def main() -> None:
    """Edit, score, and keep the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/locft_bf_atlas.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    arguments = yaml.safe_load((ROOT / CONFIG).read_text())["model"]["init_args"]
    model, tokenizer = load_language_model("atlas")
    language_model = weights_hash(model)
    requests = AtlasDataModule(limit=options.edits, split="test").edit_requests()
    editor = LocFTBF(**arguments).bind(model, tokenizer)
    begin, used = time.perf_counter(), time.process_time()
    delta = editor.edit(encode_batch(tokenizer, requests))
    seconds = {
        "wall": round(time.perf_counter() - begin, 1),
        "cpu": round(time.process_time() - used, 1),
    }
    every = [probe for request in requests for probe in probes_of(request)]
    some = [probe for request in requests[:GENERATED] for probe in probes_of(request)]
    metrics = {}
    for mode, probes in (("tf", every), ("gen", some)):
        scorer = Scorer(model, tokenizer, modes=(mode,))
        baseline = Baseline(scorer.score(probes))
        with delta.applied(model):
            scores = baseline.compare(scorer.score(probes))
        found = summarise(scores).items()
        metrics |= {
            name: round(value, 4) for name, value in found if "@" in name and name[-2:] != "/n"
        }
    record = {
        "machine": machine(),
        "command": "python benchmarks/quality/locft_bf_atlas.py",
        "config": CONFIG,
        "arguments": arguments,
        "split": "test",
        "protocol": "batch",
        "edits": len(requests),
        "edits_generated": min(GENERATED, len(requests)),
        "language_model": language_model,
        "seconds": seconds,
        "epochs": delta.info["steps"],
        "loss": [round(loss, 4) for loss in delta.info["loss"]],
        "parameters": delta.numel(),
        "metrics": metrics,
    }
    print(json.dumps(metrics, indent=2))
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
