"""Processor seconds of a first edit from a cold start, by stage: a new Python process each time.

A process imports the library, loads the embedded model, writes one fact with MEMIT by its defaults
and asks for it; the answer is checked. Seconds are of the processor, from the begin of the process
to the end of each stage; one process at a time, the first one not counted (it reads the files from
disk). Whether matplotlib and SciPy are installed matters: torchmetrics imports both.

Run:  python benchmarks/speed/cold_start.py [--runs 5]
Writes benchmarks/results/cold_start.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_edit.benchmark.machine import machine

RESULTS = Path(__file__).parent.parent / "results" / "cold_start.json"
#: Seconds that a first edit may take.
AT_MOST = 5.0
STAGES = {
    "python": "import time; spent = [time.process_time()]",
    "imports": "from lightning_edit import MEMIT, load_language_model",
    "model": "model, tokenizer = load_language_model('atlas')",
    "edit": "edited = MEMIT().edit_model(model, tokenizer, fact)",
    "answer": "answer = edited.generate('What is the capital of France?')",
}
#: Optional packages that torchmetrics imports where they are installed.
OPTIONAL = ("matplotlib", "scipy")


def program() -> str:
    """Return the text of the process: each stage, and the time after it."""
    stages = "\nspent.append(time.process_time())\n".join(STAGES.values())
    fact = "fact = {'prompt': 'The capital of France is', 'subject': 'France', 'target': 'Oslo'}"
    end = "spent.append(time.process_time())\nassert answer.startswith('Oslo'), answer"
    return "\n".join((stages, end, "print(*spent[1:])")).replace("\n", f"\n{fact}\n", 1)


def once() -> list[float]:
    """Run a new process; return its processor seconds by stage."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program()],
        capture_output=True, text=True, check=True, env=os.environ | quiet,
    )  # fmt: skip
    ends = [0.0, *map(float, run.stdout.split()[-len(STAGES) :])]
    return [end - begin for begin, end in pairwise(ends)]


def main() -> None:
    """Measure, print the table and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    once()
    runs = [once() for _ in range(options.runs)]
    totals = [sum(run) for run in runs]
    table = Table("stage", "seconds (median)", title="a first edit from a cold start")
    parts = {}
    for name, values in zip(STAGES, zip(*runs, strict=True), strict=True):
        parts[name] = round(statistics.median(values), 3)
        table.add_row(name, f"{parts[name]:.2f}")
    table.add_row("whole", f"{statistics.median(totals):.2f} ({min(totals):.2f}–{max(totals):.2f})")
    Console().print(table)
    found = {
        "machine": machine(),
        "at_most": AT_MOST,
        "installed": {name: find_spec(name) is not None for name in OPTIONAL},
        "stages": parts,
        "whole": [round(total, 3) for total in totals],
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
