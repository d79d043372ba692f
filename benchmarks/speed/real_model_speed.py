"""How long an edit takes on a real model here, and in a plain implementation, in alternating runs.

Run:  python benchmarks/speed/real_model_speed.py --lm FOLDER --out FILE.json
      python benchmarks/speed/real_model_speed.py --lm FOLDER --steps 3 --pairs 1     to try it out

FOLDER holds SmolLM2-135M-Instruct. Both ways run in one process, one after the other, on the same
requests: what slows the machine down slows both. Every pair of runs gives a ratio, and a part's is
their median. A part keeps a JSON file in ``--parts-folder`` after every pair, so a run that was
stopped goes on.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from real_model_parts import PARTS, Bench
from rich.console import Console
from rich.table import Table

from lightning_edit.benchmark.machine import machine
from lightning_edit.storage.atomic import write_atomic

SHARED = Path("../shared")


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing of a part, and keep its file after every pair."""
    part, path = PARTS[name], options.parts_folder / f"{name}.json"
    record: dict[str, Any] = {"steps_of_a_search": options.steps or "those of the editor"}
    record["pairs"] = []
    if path.exists():
        begun = json.loads(path.read_text())
        if begun["steps_of_a_search"] != record["steps_of_a_search"]:
            raise SystemExit(f"{path} was measured with other --steps; remove it, or give those")
        record = begun
    wanted = min(part.batches * (options.rounds or part.rounds), options.pairs)
    if len(record["pairs"]) >= wanted and "ratio" in record:
        return record
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(part, options, Path(folder))
        for number in range(len(record["pairs"]), wanted):
            record["pairs"].append(bench.pair(number))
            _keep(path, record)
            print(name, number + 1, "of", wanted, record["pairs"][-1]["ratio"], flush=True)
        main = record["pairs"][0]["main"]
        record |= {"part": name, "machine": machine(), "at_least": part.at_least}
        record |= {"editor": part.editor, "requests_together": part.size, "tiny": part.tiny}
        record["ratio"] = {
            unit: statistics.median(pair["ratio"][unit][main] for pair in record["pairs"])
            for unit in ("wall", "cpu")
        }
        if part.editor in ("MEMIT", "ROME"):
            steps = statistics.mean(pair["optimiser_steps"]["ours"] for pair in record["pairs"])
            record["operations"] = bench.operations(steps)
        _keep(path, record)
    return record


def _keep(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())


def shown(records: Sequence[dict[str, Any]]) -> None:
    """Print a line a part."""
    table = Table(
        "part", "pairs", "ours s", "plain s", "ratio wall", "ratio CPU", "at least", "×floor"
    )
    for record in records:
        pairs, main = record["pairs"], record["pairs"][0]["main"]
        seconds = [
            statistics.median(pair["seconds"][who]["cpu"][main] for pair in pairs)
            for who in ("ours", "reference")
        ]
        floor = record.get("operations", {}).get("floor_seconds_per_edit")
        above = "" if floor is None else f"{_search_seconds(pairs) / floor:.2f}"
        cells = [f"{value:.4f}" for value in seconds]
        ratios = [f"{record['ratio'][unit]:.1f}" for unit in ("wall", "cpu")]
        row = [record["part"], str(len(pairs)), *cells, *ratios, f"{record['at_least']:g}", above]
        table.add_row(*row)
    Console(width=110).print(table)


def _search_seconds(pairs: Sequence[dict[str, Any]]) -> float:
    return statistics.median(pair["seconds"]["ours"]["cpu"]["search"] for pair in pairs)


def main() -> None:
    """Measure the parts asked for, each in turn, and join their files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", required=True, help="folder of SmolLM2-135M-Instruct")
    tiny = SHARED / "models" / "counterfact-zsre-gpt2"
    parser.add_argument("--tiny", type=Path, default=tiny, help="folder of the tiny GPT-2")
    data = SHARED / "data" / "counterfact" / "counterfact_500.json"
    parser.add_argument("--data", type=Path, default=data, help="COUNTERFACT records")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--rounds", type=int, help="times that every batch is measured")
    parser.add_argument("--pairs", type=int, default=99, help="most pairs of a part, for now")
    parser.add_argument("--steps", type=int, help="steps of a search, to try the program out")
    parser.add_argument("--plain-cases", type=int, default=5, help="cases scored in the plain way")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts-folder", type=Path, default=Path("runs/real-model-speed"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    records = [measure(name, options) for name in options.only]
    shown(records)
    if options.out is not None:
        options.out.write_text(json.dumps({"parts": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
