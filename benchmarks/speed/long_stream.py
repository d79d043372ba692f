"""Cost of a commit, memory, disk, replay and undo in a long stream of edits, on a toy model.

Run:  PYTHONPATH=. python benchmarks/speed/long_stream.py --commits 100000 --session 3000

Every commit is one edit of the toy editor of ``tests/toy.py``, written to a ledger on disk. At
1,000, 10,000, 100,000 … commits: seconds of a commit (mean of the last thousand), the resident set
of the process, bytes on disk. Then a replay by a new process's worth of objects (from the newest
snapshot), the undo and redo of edits of several ages, and a replay from the first edit. The bits
are compared each time. ``--session`` also times the steps of ``EditTrainer.edit`` on so many edits.

A shared machine gives a process less than a core, so its processor time (``cpu``, which waiting for
a disk is no part of) stands beside every wall time. benchmarks/results/long_stream.json is written
after each part.
"""

import argparse
import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table

from lightning_edit.benchmark.machine import machine
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditRequest
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer


def resident() -> int:
    """Return the resident set of this process, in bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def on_disk(folder: Path) -> dict[str, int]:
    """Return the bytes of the journal, of the delta files and of the snapshots."""
    sizes = {"journal": (folder / "journal.jsonl").stat().st_size, "deltas": 0, "snapshots": 0}
    for path in folder.rglob("*.safetensors"):
        sizes["deltas" if path.parent == folder else "snapshots"] += path.stat().st_size
    return sizes


def timed(name: str, work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Return the wall and processor seconds of a call, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {f"{name}_s": round(wall, 3), f"{name}_cpu_s": round(cpu, 3)}, found


def milestones(commits: int) -> list[int]:
    """Return 1,000, 10,000, … up to a number of commits, and that number."""
    found = [10**power for power in range(3, 9) if 10**power < commits]
    return [*found, commits]


def write(folder: Path, commits: int) -> tuple[list[dict[str, Any]], Ledger]:
    """Commit a stream; return a row for each milestone, and the ledger."""
    model, tokenizer = toy_model(), toy_tokenizer()
    editor = ToyEditor(gain=1e-6).bind(model, tokenizer)
    ledger = Ledger(model, editor, folder)
    ledger.open(editor="ToyEditor")
    request = toy_requests(1)[0]
    batch = encode_batch(tokenizer, [request])
    rows, spent, busy, longest = [], 0.0, 0.0, 0.0
    wanted, memory = milestones(commits), resident()
    for number in range(commits):
        named = EditRequest(f"fact-{number}", request.prompt, request.target, request.subject)
        delta = editor.edit(replace(batch, requests=(named,)))
        begin, cpu = time.perf_counter(), time.process_time()
        ledger.commit(delta, [named])
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        if wanted[0] - number <= 1000:
            spent, busy, longest = spent + seconds, busy + cpu, max(longest, seconds)
        if number + 1 == wanted[0]:
            now = resident()
            rows.append(
                {
                    "commits": number + 1,
                    "ms_a_commit": round(1000 * spent / min(1000, number + 1), 3),
                    "cpu_ms_a_commit": round(1000 * busy / min(1000, number + 1), 3),
                    "longest_ms": round(1000 * longest, 2),
                    "resident_mb": round(now / 1e6, 1),
                    "grown_mb": round((now - memory) / 1e6, 1),
                    **on_disk(folder),
                }
            )
            print(rows[-1], flush=True)
            spent = busy = longest = 0.0
            wanted.pop(0)
    return rows, ledger


def replayed(folder: Path) -> Ledger:
    """Replay a folder's journal on a new model."""
    ledger = Ledger(toy_model(), directory=folder)
    ledger.replay()
    return ledger


def replay(folder: Path, expected: str, how: str) -> dict[str, Any]:
    """Time a replay, from the newest snapshot or, where there is none, from the first edit."""
    seconds, ledger = timed("replay", lambda: replayed(folder))
    same = weights_hash(ledger.model) == expected
    row = {"replay from": how, **seconds, "same bits": same}
    print(row, flush=True)
    return row


def undos(ledger: Ledger, commits: int) -> Iterator[dict[str, Any]]:
    """Time the undo and the redo of edits of several ages."""
    before = weights_hash(ledger.model)
    ages = [age for age in (1, 100, 1000, 10_000, 50_000, 100_000) if age < commits]
    for age in [*ages, commits]:
        name = f"fact-{commits - age}"
        undo, _ = timed("undo", lambda name=name: ledger.undo([name]))
        redo, _ = timed("redo", lambda name=name: ledger.redo([name]))
        same = weights_hash(ledger.model) == before
        row = {"age": age, **undo, **redo, "same bits": same}
        print(row, flush=True)
        yield row


class StepTimes(pl.Callback):
    """Seconds of each step of a run."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def session(folder: Path, commits: int) -> dict[str, Any]:
    """Return the milliseconds of a step of ``EditTrainer.edit``, at the start and at the end."""
    times = StepTimes()
    trainer = EditTrainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, callbacks=[times]
    )
    editor = ToyEditor(gain=1e-6).bind(toy_model(), toy_tokenizer())
    trainer.edit(editor, ToyData(commits), run=str(folder), modes=("tf",), checkpoint_every=100)
    ends, part = times.ends[:-1], commits // 5  # the last step evaluates
    first, last = ends[2 * part] - ends[part], ends[-1] - ends[-1 - part]
    return {
        "steps": commits,
        "ms_a_step_second_fifth": round(1000 * first / part, 3),
        "ms_a_step_last_fifth": round(1000 * last / part, 3),
    }


def main() -> None:
    """Measure, print tables and keep them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--session", type=int, default=0, help="steps of a run; 0: none")
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()
    record: dict[str, Any] = {
        "command": f"python benchmarks/speed/long_stream.py --commits {options.commits} "
        f"--session {options.session}",
        "model": "tests/toy.py: one matrix of 16 x 64, updates of rank 1",
        "machine": machine(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "long_stream.json"

    def save() -> None:
        record["load"] = os.getloadavg()
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "ledger"
        record["commits"], ledger = write(folder, options.commits)
        bits = weights_hash(ledger.model)
        record["replay"] = [replay(folder, bits, "newest snapshot")]
        save()
        if options.session:
            record["session"] = session(Path(name) / "run", options.session)
        record["undo"] = []
        for row in undos(ledger, options.commits):
            record["undo"].append(row)
            save()
        shutil.rmtree(folder / "snapshots", ignore_errors=True)
        record["replay"].append(replay(folder, bits, "first edit"))
        save()
    console = Console(width=120)
    for listed in (record["commits"], record["undo"], record["replay"], [record.get("session")]):
        rows = [row for row in listed if row]
        if rows:
            table = Table(*rows[0])
            for row in rows:
                table.add_row(*map(str, row.values()))
            console.print(table)


if __name__ == "__main__":
    main()
