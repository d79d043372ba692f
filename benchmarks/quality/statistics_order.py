"""What the order of a text costs: statistics of its beginning and of a random sample.

Run:  python benchmarks/quality/statistics_order.py

The text is the embedded model's own, sorted by relation. MEMIT writes 100 facts in one batch, with
targets searched once. Written to benchmarks/results/statistics_order.json.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import transformers
from quick_statistics import Bench
from rich.console import Console
from rich.table import Table

from lightning_edit import MEMIT, atlas
from lightning_edit.benchmark.machine import machine
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.metrics.aspects import summarise
from lightning_edit.models.view import resolve
from lightning_edit.statistics.collect import collect

SHOWN = ("reliability/em@tf", "generalization/em@tf", "locality/kept@tf")
#: Tokens of the text, and whether it is shuffled first.
SAMPLES: dict[str, tuple[int | None, bool]] = {
    "50,000, in order": (50_000, False),
    "50,000, shuffled": (50_000, True),
    "all": (None, False),
}
WEIGHTS = (20.0, 64.0, 200.0, 640.0)


def write_together(bench: Bench, statistics: str, weight: float) -> dict[str, float]:
    """Edit all requests in one batch and score them."""
    editor = MEMIT(statistics=statistics, moment_weight=weight, steps=40, clamp=2.0)
    editor.bind(bench.model, bench.tokenizer)
    batch = encode_batch(bench.tokenizer, bench.requests)
    if "MEMIT" not in bench.targets:
        bench.targets["MEMIT"] = editor.search(batch)
    delta = editor.write(batch, bench.targets["MEMIT"])
    probes = [probe for each in bench.probes.values() for probe in each]
    with Ledger(bench.model).staged(delta, bench.requests):
        found = summarise(bench.baseline.compare(bench.scorer.score(probes)))
    return {metric: round(found[metric], 4) for metric in SHOWN}


def rows(bench: Bench) -> list[dict[str, Any]]:
    """Measure every sample of the text with every λ."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for label, (tokens, shuffled) in SAMPLES.items():
            texts = atlas.corpus(shuffled=shuffled)
            layers = range(resolve(bench.model).num_blocks)
            path = Path(folder) / f"{label}.safetensors"
            collect(bench.model, bench.tokenizer, texts, layers, tokens).save(path)
            found += [
                {"statistics": label, "moment_weight": weight}
                | write_together(bench, str(path), weight)
                for weight in WEIGHTS
            ]
    return found


def main() -> None:
    """Measure, print a table and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=100)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    bench = Bench(options.edits, "test")
    found = rows(bench)
    record = {
        "command": f"python benchmarks/quality/statistics_order.py --edits {options.edits}",
        "machine": machine(),
        "rows": found,
    }
    path = Path(__file__).parents[1] / "results" / "statistics_order.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    table = Table("statistics", "λ", *SHOWN)
    for row in found:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
