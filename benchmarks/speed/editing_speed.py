"""How long an edit takes here, and in a plain implementation of the same algorithm beside it.

Run:  python benchmarks/speed/editing_speed.py --out benchmarks/results/editing_speed.json
      python benchmarks/speed/editing_speed.py --quick          two minutes, to see that it works

Every part runs once with one thread and once with two, in a process of its own. Wall time stands
beside processor time: on a machine with other work, ratios of processor time are the ones to trust
(with one thread; idle threads that wait for each other can count too).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from speed_around import evaluation, scaling, statistics_of_layers
from speed_editing import CASES, editing

import lightning_edit.editors as editors
from lightning_edit.benchmark.machine import machine

AROUND = {"evaluation": evaluation, "statistics": statistics_of_layers, "scaling": scaling}


def measure(part: str, options: argparse.Namespace) -> Any:
    """Measure one part in this process."""
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    before = os.getloadavg()[0]
    found = AROUND[part](options) if part in AROUND else editing(CASES[part], options)
    return {"part": part, "threads": options.threads, "load": [before, os.getloadavg()[0]]} | (
        {"sizes": found} if isinstance(found, list) else found
    )


def measured_apart(part: str, threads: int, arguments: list[str]) -> Any:
    """Measure one part in a new process whose libraries never saw another number of threads."""
    # Threads that spin while they wait would take the time of whatever else runs.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        own = ["--part", part, "--threads", str(threads), "--out", str(out)]
        command = [sys.executable, __file__, *arguments, *own]
        subprocess.run(command, env=environment, check=True)
        return json.loads(out.read_text())


def shown(record: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Print a line a part and number of threads."""
    table = Table("part", "threads", "ours s", "reference s", "ratio wall", "ratio CPU", "at least")
    for run in runs:
        if "ratio" not in run:
            continue
        seconds = run.get("seconds_per_edit") or run.get("seconds_per_probe") or run["seconds"]
        stages = [stage for stage in run["ratio"]["wall"] if stage in seconds["ours"]["wall"]]
        for stage in stages:
            values = [f"{seconds[who]['wall'][stage]:.4f}" for who in ("ours", "reference")]
            ratio = [f"{run['ratio'][unit][stage]:.1f}" for unit in ("wall", "cpu")]
            main = stage in ("edit", "both", "one_pass")
            least = f"{run['at_least']:.1f}" if main else ""
            table.add_row(f"{run['part']} {stage}", str(run["threads"]), *values, *ratio, least)
    console = Console(width=120)
    console.print(table)
    sizes = Table("edits in a batch", "threads", "search s/edit", "keys", "solve")
    for run in runs:
        for one in run.get("sizes", ()):
            times = one["seconds_per_edit"]["wall"]
            cells = [
                f"{times[stage]:.5f}" if stage in times else "not measured"
                for stage in ("search", "keys", "solve")
            ]
            sizes.add_row(str(one["edits"]), str(run["threads"]), *cells)
    if sizes.row_count:
        console.print(sizes)
    console.print(f"load {record['load_before']:.1f} before, {record['load_after']:.1f} after")


def main() -> None:
    """Measure every part asked for with each number of threads, and keep it as JSON."""
    names = [*CASES, *AROUND]
    known = [name for name in names if name in AROUND or hasattr(editors, CASES[name].editor)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=known, default=known)
    parser.add_argument("--edits", type=int, help="fewer edits than the published numbers")
    parser.add_argument("--quick", action="store_true", help="a handful of edits, narrow models")
    parser.add_argument("--repeats", type=int, default=3, help="own runs; their median is kept")
    parser.add_argument("--thread-counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=known, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.edits, options.repeats = options.edits or 3, 1
    if options.part is not None:
        options.out.write_text(json.dumps(measure(options.part, options)))
        return
    record: dict[str, Any] = {"machine": machine(), "quick": options.quick}
    record["load_before"] = os.getloadavg()[0]
    passed = [*(["--quick"] if options.quick else []), "--repeats", str(options.repeats)]
    passed += [] if options.edits is None else ["--edits", str(options.edits)]
    runs = []
    for threads in options.thread_counts:
        for part in options.parts:
            runs.append(measured_apart(part, threads, passed))
            print(part, threads, "threads", runs[-1].get("ratio", ""), flush=True)
            record |= {"load_after": os.getloadavg()[0], "runs": runs}
            if options.out is not None:  # kept part by part: a whole run takes long
                options.out.write_text(json.dumps(record, indent=2) + "\n")
    shown(record, runs)


if __name__ == "__main__":
    main()
