"""Editing in several processes against one, of one thread each: search and scoring, by stage.

Run:  python benchmarks/speed/editing_processes.py --out benchmarks/results/editing_processes.json
      python benchmarks/speed/editing_processes.py --requests 8      to see that it works
      python benchmarks/speed/editing_processes.py --lm ../smol --rows 32 --out …      another model

MEMIT writes facts of the atlas at once; in another model than the embedded one with the identity in
the place of statistics, which costs the same. All runs cut the search into the same passes
(``rows_per_pass``), and must end with equal weights. A shared machine gives a process less than a
core, so the processor seconds of every process are reported beside the wall time: the most of any
process is what the wall time would be on idle cores, if nobody had to wait.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STAGES = ("search", "keys", "solve", "evaluate")


def worker(folder: Path, options: argparse.Namespace) -> None:
    """Edit in this process, as one of several, and write what each stage took."""
    import torch

    from lightning_edit import MEMIT, AtlasDataModule, load_language_model
    from lightning_edit.evaluation.evaluator import Evaluation
    from lightning_edit.models.weights import weights_hash
    from lightning_edit.session.trainer import EditTrainer

    torch.set_num_threads(1)
    spent: dict[str, float] = {}

    class Timed(Evaluation):
        """Evaluation that knows its processor time, that of the baseline included."""

        def _dealt(self, *arguments: Any) -> Any:
            begin, wall = time.process_time(), time.perf_counter()
            found = super()._dealt(*arguments)
            spent["evaluate_cpu"] = spent.get("evaluate_cpu", 0.0) + time.process_time() - begin
            spent["evaluate_wall"] = spent.get("evaluate_wall", 0.0) + time.perf_counter() - wall
            return found

    import lightning_edit.session.trainer as trainer_module

    trainer_module.Evaluation = Timed  # type: ignore[misc]  # a measured one
    statistics = "auto" if options.lm == "atlas" else "identity"
    editor = MEMIT(
        clamp=0.75, rows_per_pass=options.rows, steps=options.steps, statistics=statistics
    )
    search = editor.search

    def timed(batch: Any) -> Any:
        begin = time.process_time()
        found = search(batch)
        spent["search_cpu"] = time.process_time() - begin
        return found

    editor.search = timed  # type: ignore[method-assign]  # a measured one
    model, tokenizer = load_language_model(options.lm)
    editor.bind(model, tokenizer)
    trainer = EditTrainer(
        logger=False, accelerator="cpu", devices=options.processes, enable_progress_bar=False,
        strategy="ddp" if options.processes > 1 else "auto",
    )  # fmt: skip
    results = trainer.edit(
        editor, AtlasDataModule(limit=options.requests), protocol="batch", run=str(folder / "run")
    )
    timing = {name: results["timing"].get(f"{name}_seconds", 0.0) for name in STAGES}
    record = {"hash": weights_hash(model), "wall": timing, **spent}
    (folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(record))


def measure(processes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Start one run and collect what its processes say."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--worker", name, "--processes", str(processes)]
        for option in ("requests", "rows", "steps", "lm"):
            command += [f"--{option}", str(getattr(options, option))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run(command, check=True, env=environment)
        files = [folder / f"rank-{rank}.json" for rank in range(processes)]
        until = time.monotonic() + 60
        while not all(file.exists() for file in files) and time.monotonic() < until:
            time.sleep(0.1)
        ranks = [json.loads(file.read_text()) for file in files]
    return {
        "processes": processes,
        "hashes": sorted({rank["hash"] for rank in ranks}),
        "wall": ranks[0]["wall"],
        "search_cpu": [round(rank["search_cpu"], 3) for rank in ranks],
        "scoring_cpu": [round(rank["evaluate_cpu"], 3) for rank in ranks],
        "scoring_wall": [round(rank["evaluate_wall"], 3) for rank in ranks],
    }


def main() -> None:
    """Measure, or be one measured process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rows", type=int, default=112, help="texts in a pass of the search")
    parser.add_argument("--lm", default="atlas", help="language model: atlas, or a folder")
    parser.add_argument("--steps", type=int, default=20, help="steps of the search")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        worker(options.worker, options)
        return
    from lightning_edit.benchmark.machine import machine

    runs = [
        measure(processes, options)
        for _ in range(options.repeats)
        for processes in (1, options.processes)
    ]
    one = [run for run in runs if run["processes"] == 1]
    several = [run for run in runs if run["processes"] != 1]
    assert len({name for run in runs for name in run["hashes"]}) == 1, "weights differ"

    def fastest(listed: list[dict[str, Any]], name: str) -> float:
        return min(max(run[name]) for run in listed)

    speed = {
        "search, wall": min(r["wall"]["search"] for r in one)
        / min(r["wall"]["search"] for r in several),
        "search, processor time": fastest(one, "search_cpu") / fastest(several, "search_cpu"),
        "scoring, wall": fastest(one, "scoring_wall") / fastest(several, "scoring_wall"),
        "scoring, processor time": fastest(one, "scoring_cpu") / fastest(several, "scoring_cpu"),
    }
    found = {
        "machine": machine(),
        "load": os.getloadavg(),
        "model": Path(options.lm).name,
        "requests": options.requests,
        "steps": options.steps,
        "rows_per_pass": options.rows,
        "runs": runs,
        "speed_up": {name: round(value, 2) for name, value in speed.items()},
    }
    text = json.dumps(found, indent=2) + "\n"
    sys.stdout.write(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
