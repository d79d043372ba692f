"""Milliseconds of UltraEdit per edit: its gradients, beside one full backward pass, and its solve.

Run:  python benchmarks/speed/ultraedit_speed.py

A thousand facts of the embedded model in one batch, one thread, processor time, the least of the
repeats. Written to benchmarks/results/ultraedit_speed.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import UltraEdit
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.answer_gradients import answer_factors
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.models.loading import load_language_model
from lightning_edit.types import EditBatch, EditRequest


def requests(count: int) -> list[EditRequest]:
    """Return facts of every split, each once."""
    found: dict[str, EditRequest] = {}
    for split in ("test", "val", "train"):
        for request in AtlasDataModule(split=split).edit_requests():
            found.setdefault(request.id, request)
    return list(found.values())[:count]


def least(repeats: int, work: Callable[[], Any]) -> float:
    """Return the least processor seconds of some repeats."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def gradients(editor: UltraEdit, batch: EditBatch, whole: bool) -> None:
    """Take every edit's gradients, everywhere or at the answers alone."""
    items = batch.encoded
    sizes = [len(item.prompt_ids) + len(item.target_ids) for item in items]
    for numbers in length_sorted(sizes, editor.rows_per_pass):
        pairs = [(items[n].prompt_ids, items[n].target_ids) for n in numbers]
        if whole:
            token_factors(editor.language_model, pairs, editor._names, each=True)
        else:
            answer_factors(editor.view, pairs, editor._names)


def products_per_second() -> float:
    """Return 10⁹ float32 operations a second in a matrix product of the model's size."""
    left, right = torch.randn(640, 192), torch.randn(640, 192)
    seconds = least(30, lambda: [left @ right.mT for _ in range(10)])
    return 10 * 2 * 640 * 192 * 640 / seconds / 1e9


def main() -> None:
    """Measure and keep the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    model, tokenizer = load_language_model("atlas")
    batch = encode_batch(tokenizer, requests(options.edits))
    editor = UltraEdit().bind(model, tokenizer)
    editor.edit(batch)
    count, repeats = len(batch), options.repeats
    before = least(repeats, lambda: gradients(editor, batch, whole=True))
    after = least(repeats, lambda: gradients(editor, batch, whole=False))
    everything = least(repeats, lambda: editor.edit(batch))
    tokens = sum(len(item.prompt_ids) + len(item.target_ids) for item in batch.encoded)
    record = {
        "command": "python benchmarks/speed/ultraedit_speed.py",
        "model": "atlas",
        "edits": count,
        "layers": editor._names,
        "tokens_per_edit": round(tokens / count, 2),
        "cpu_milliseconds_per_edit": {
            "gradients everywhere": round(1e3 * before / count, 4),
            "gradients": round(1e3 * after / count, 4),
            "everything": round(1e3 * everything / count, 4),
            "statistics and solve": round(1e3 * (everything - after) / count, 4),
        },
        "statistics_and_solve_cpu_seconds": round(everything - after, 4),
        "billion_operations_per_second": round(products_per_second(), 1),
        "machine": machine(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "ultraedit_speed.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    Console().print_json(json.dumps(record))


if __name__ == "__main__":
    main()
