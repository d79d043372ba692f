"""Seconds of a batch by stage, after a history of so many edits, on the embedded model.

Run:  python benchmarks/speed/sequential_cost.py
      python benchmarks/speed/sequential_cost.py --editors --widths 16384 --keys 100   (10 GB)

The history is made of random keys of the size of real ones, in edits of one batch; the ledger's
deltas are kept as in a run. Also: factoring a system anew against updating its factor, by width.
Written to benchmarks/results/sequential_cost.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import EMMET, ENCORE, MEMIT, NSE, AlphaEdit, Editor, UltraEdit
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.functional.cholesky import add_keys
from lightning_edit.models.loading import load_language_model
from lightning_edit.types import EditBatch

EDITORS: dict[str, Any] = {
    "MEMIT": lambda: MEMIT(keep_history=True, clamp=0.75),
    "AlphaEdit": lambda: AlphaEdit(clamp=0.75),
    "ENCORE": lambda: ENCORE(clamp=0.75),
    "NSE": lambda: NSE(clamp=0.75),
    "EMMET": lambda: EMMET(clamp=0.75),
    "UltraEdit": UltraEdit,
}


def like(delta: Delta, number: int, generator: torch.Generator) -> Delta:
    """Return a delta whose history is of the size and scale of another one's."""
    history = {}
    for name, value in delta.history.items():
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        # Running sums (UltraEdit) are kept as they are: a count must stay a count.
        history[name] = value.std() * noise if name.startswith("keys/") else value.clone()
    return Delta((f"synthetic-{number}",), {}, history=history)


def seconds_of(editor: Editor, batch: EditBatch) -> dict[str, float]:
    """Edit a batch; return seconds by stage, and processor seconds of the whole."""
    editor.take_stages()
    begin = time.process_time()
    editor.edit(batch)
    return editor.take_stages() | {"cpu_whole": time.process_time() - begin}


def by_history(name: str, histories: list[int], size: int, repeats: int) -> list[dict[str, Any]]:
    """Measure one editor; every measured batch comes after a commit, as in a run."""
    model, tokenizer = load_language_model("atlas")
    editor = EDITORS[name]().bind(model, tokenizer)
    batch = encode_batch(tokenizer, AtlasDataModule(limit=size, split="val").edit_requests())
    delta, generator = editor.edit(batch), torch.Generator().manual_seed(0)
    found, number = [], 0
    for history in histories:
        while number * size < history:
            editor.remember(like(delta, number, generator))
            number += 1
        editor.edit(batch)
        times = []
        for _ in range(repeats):
            if history:
                editor.remember(like(delta, number, generator))
                number += 1
            times.append(seconds_of(editor, batch))
        row: dict[str, Any] = {"editor": name, "history": history, "batch": size}
        row |= {
            # The least: other work on the machine only adds.
            stage: round(min(one[stage] for one in times), 5)
            for stage in times[0]
        }
        found.append(row)
    return found


def factors(widths: list[int], counts: list[int]) -> list[dict[str, Any]]:
    """Compare factoring A + KKᵀ anew with updating the factor of A, in processor seconds."""
    found = []
    for width in widths:
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(width, 1024, generator=generator, dtype=torch.float64)
        A = root @ root.mT / 1024
        A.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(A)
        for count in counts:
            K = torch.randn(width, count, generator=generator, dtype=torch.float64)
            begin = time.process_time()
            anew = torch.linalg.cholesky(A + K @ K.mT)
            middle = time.process_time()
            updated = add_keys(factor, K)
            end = time.process_time()
            row = {"width": width, "keys": count, "anew": middle - begin, "update": end - middle}
            row = {key: round(value, 4) for key, value in row.items()}
            row["difference"] = float((anew - updated).norm() / anew.norm())
            found.append(row)
    return found


def main() -> None:
    """Measure, print tables and keep them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--editors", nargs="*", default=list(EDITORS))
    parser.add_argument("--histories", nargs="+", type=int, default=[0, 100, 1000, 2000])
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--widths", nargs="*", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--keys", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    rows = [
        row
        for name in options.editors
        for row in by_history(name, options.histories, options.batch, options.repeats)
    ]
    updates = factors(options.widths, options.keys)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "command": "python benchmarks/speed/sequential_cost.py",
        "model": "atlas",
        "history": "synthetic keys, one delta a batch; least of the repeats",
        "machine": machine(),
        "seconds_of_a_batch": rows,
        "cpu_seconds_of_a_factor": updates,
    }
    path = options.out / "sequential_cost.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    console = Console(width=120)
    for listed in (rows, updates):
        if listed:
            table = Table(*dict.fromkeys(key for row in listed for key in row))
            for row in listed:
                table.add_row(*(str(row.get(column.header, "–")) for column in table.columns))
            console.print(table)


if __name__ == "__main__":
    main()
