"""Kill a real run with SIGKILL at random points, resume it, and compare with an uninterrupted one.

Run:  python benchmarks/robustness/kill_and_resume.py --editor MEMIT --edits 200 --kills 4
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.progress import track

from lightning_edit.benchmark.machine import machine
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.ledger import Ledger
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash

CLI = [sys.executable, "-m", "lightning_edit"]


def command(run: Path, editor: str, edits: int) -> list[str]:
    """Return the run's command line."""
    options = {
        "--model": editor, "--data": "AtlasDataModule", "--data.limit": edits, "--run": run,
        "--protocol": "sequential", "--batch_size": 1, "--eval_at": "[1, 50, end]",
        "--modes": "[tf]", "--trainer.enable_progress_bar": "false",
    }  # fmt: skip
    return [*CLI, "edit", *(str(part) for pair in options.items() for part in pair)]


def committed(run: Path) -> int:
    """Return how many commits the journal of a run that is being written has."""
    path = run / "ledger" / "journal.jsonl"
    return path.read_text(errors="replace").count('"op": "commit"') if path.exists() else 0


def kill_at(arguments: list[str], run: Path, commits: int) -> int:
    """Start a process, kill it once so many commits are on disk, and return how many there are."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    while process.poll() is None and committed(run) < commits:
        time.sleep(0.005)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return committed(run)


def state(run: Path) -> dict[str, Any]:
    """Return what a run left: the weights its journal gives, its scores, its edits."""
    model, _ = load_language_model("atlas")
    Ledger(model, None, run / "ledger").replay()
    results = json.loads((run / "results.json").read_text())
    return {
        "weights": weights_hash(model),
        "points": results["points"],
        "cases": (run / "cases.jsonl").read_bytes(),
        "edits": [name for e in Journal(run / "ledger").active() for name in e.ids],
    }


def main() -> None:
    """Compare, print, and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--editor", default="MEMIT")
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        subprocess.run(
            command(whole, options.editor, options.edits), check=True, stdout=subprocess.DEVNULL
        )
        draw = random.Random(options.seed)
        points = sorted(draw.sample(range(1, options.edits), options.kills))
        killed = []
        for number, point in enumerate(track(points, "Killing")):
            fresh = command(cut, options.editor, options.edits)
            killed.append(kill_at(fresh if number == 0 else [*CLI, "resume", str(cut)], cut, point))
        subprocess.run([*CLI, "resume", str(cut)], check=True, stdout=subprocess.DEVNULL)
        left, right = state(whole), state(cut)
    same = {name: left[name] == right[name] for name in left}
    record = {
        "editor": options.editor, "edits": len(right["edits"]), "killed_after_commits": killed,
        "identical": same, "machine": machine(),
    }  # fmt: skip
    Console().print_json(json.dumps(record))
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n")
    if not all(same.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
