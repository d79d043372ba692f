"""Which layers, steps and bounds suit each editor on the embedded model: every combination, scored.

Run:  python benchmarks/quality/layer_sweep.py --editor ROME --edits 20 The defaults of the editors
for small models come from the results under benchmarks/results.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import lightning_edit.editors as editors
from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.metrics.aspects import summarise
from lightning_edit.models.loading import load_language_model

SHOWN = (
    "reliability/em@tf",
    "generalization/em@tf",
    "locality.neighborhood/em@tf",
    "locality/kept@tf",
    "portability/em@tf",
)


def measure(name: str, arguments: dict[str, Any], edits: int, split: str) -> dict[str, Any]:
    """Edit every request alone, as protocol single does, and score it."""
    model, tokenizer = load_language_model("atlas")
    editor = getattr(editors, name)(**arguments).bind(model, tokenizer)
    requests = AtlasDataModule(limit=edits, split=split).edit_requests()
    probes = {request.id: probes_of(request) for request in requests}
    scorer = Scorer(model, tokenizer, modes=("tf",))
    baseline = Baseline(scorer.score([probe for each in probes.values() for probe in each]))
    begin = time.process_time()
    deltas = editor.edit_independent(encode_batch(tokenizer, requests))
    seconds = (time.process_time() - begin) / len(requests)
    ledger, scores = Ledger(model), []
    for request, delta in zip(requests, deltas, strict=True):
        ledger.commit(delta, [request])
        scores += baseline.compare(scorer.score(probes[request.id]))
        ledger.undo([request.id])
    found = summarise(scores)
    return {
        "editor": name,
        "arguments": arguments,
        "edits": edits,
        "split": split,
        "metrics": {metric: round(found[metric], 4) for metric in SHOWN if metric in found},
        "cpu_seconds_per_edit": round(seconds, 3),
    }


def main() -> None:
    """Measure the grid given on the command line and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--editor", default="ROME")
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--split", default="val", help="never test: defaults are chosen here")
    parser.add_argument(
        "--grid", type=json.loads, default={"layers": [[0], [1], [2], [3]]}, metavar="JSON",
        help="lists of values by argument",
    )  # fmt: skip
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    found = []
    for values in itertools.product(*options.grid.values()):
        arguments = dict(zip(options.grid, values, strict=True))
        found.append(measure(options.editor, arguments, options.edits, options.split))
        print(json.dumps(found[-1]["metrics"]), arguments, flush=True)
    table = Table("arguments", *SHOWN, "CPU s/edit")
    for one in sorted(found, key=lambda entry: -sum(entry["metrics"].values())):
        cells = [f"{one['metrics'].get(metric, float('nan')):.3f}" for metric in SHOWN]
        arguments = ", ".join(f"{key}={value}" for key, value in one["arguments"].items())
        table.add_row(arguments, *cells, f"{one['cpu_seconds_per_edit']:.2f}")
    Console(width=140).print(table)
    if options.out is not None:
        record = {"machine": machine(), "runs": found}
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
