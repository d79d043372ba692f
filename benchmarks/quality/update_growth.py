"""How the updates of edits in a row add up: their size, and that of their sum, against the weights.

Reads the ledgers of runs with ``--protocol sequential``, for example cells of a grid, and says why
an editor holds or fails over a sequence: updates in unlike directions grow with the square root of
their number, updates in one direction with their number, and those of an editor that reads the
gradient of a model that its own edits broke faster than that.

Run:  python benchmarks/quality/update_growth.py GRID/cells/atlas-statements-stream-* \
        --lm atlas --out benchmarks/results/update_growth.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_edit.benchmark.machine import machine
from lightning_edit.edits.delta import Delta
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weight
from lightning_edit.storage.run_folder import RunFolder

AT = (1, 2, 3, 5, 10, 30, 100, 300, 1000)


def growth(run: Path, model: torch.nn.Module) -> dict[str, Any]:
    """Return the size of updates and of their sum after some edits, of the matrix that moved most.

    Args:
        run: Folder of a run.
        model: The unedited language model.
    """
    files = sorted(RunFolder(run).ledger.glob("*.safetensors"))
    total: dict[str, torch.Tensor] = {}
    single: dict[str, list[float]] = {}
    summed: dict[str, list[float]] = {}
    for file in files:
        for name, update in Delta.load(file).weights.items():
            change = update.dense(torch.float64)
            norm = float(weight(model, name).raw().detach().double().norm())
            total[name] = total.get(name, torch.zeros_like(change)) + change
            single.setdefault(name, []).append(float(change.norm()) / norm)
            summed.setdefault(name, []).append(float(total[name].norm()) / norm)
    if not summed:
        raise SystemExit(f"{run} holds no update of a weight; give runs of editors that write some")
    most = max(summed, key=lambda name: summed[name][-1])
    # |sum|² = Σ|u|² + 2 Σ<u,v>: the mean cosine of pairs, as if all updates were equally long.
    sizes = torch.tensor(single[most], dtype=torch.float64)
    crossed = summed[most][-1] ** 2 - float((sizes**2).sum())
    pairs = float(sizes.sum()) ** 2 - float((sizes**2).sum())
    return {
        "editor": json.loads(RunFolder(run).results.read_text())["editor"]["class"],
        "weight": most,
        "edits": len(sizes),
        "update_over_weight": {
            str(n): round(single[most][n - 1], 3) for n in AT if n <= len(sizes)
        },
        "sum_over_weight": {str(n): round(summed[most][n - 1], 3) for n in AT if n <= len(sizes)},
        "mean_cosine": round(crossed / pairs, 3) if pairs else None,
    }


def main() -> None:
    """Read the runs, print a table, and keep the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--lm", default="atlas", help="the model that they edited")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model, _ = load_language_model(options.lm)
    found = [growth(run, model) for run in options.runs]
    table = Table("editor", "edits", "update, median", "sum after 10", "sum after all", "cosine")
    for one in found:
        sizes = sorted(one["update_over_weight"].values())
        sums = one["sum_over_weight"]
        last = list(sums.values())[-1]
        table.add_row(
            one["editor"], str(one["edits"]), f"{sizes[len(sizes) // 2]:.2f}",
            f"{sums.get('10', last):.2f}", f"{last:.3g}", str(one["mean_cosine"]),
        )  # fmt: skip
    Console().print(table)
    if options.out is not None:
        record = {"machine": machine(), "norms": "Frobenius, over that of the unedited weight"}
        options.out.write_text(json.dumps(record | {"runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
