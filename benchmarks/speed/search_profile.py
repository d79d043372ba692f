"""Where the time of a target search goes, by kind of operator, beside the floor of its products.

Run:  python benchmarks/speed/search_profile.py --out benchmarks/results/editing_speed_profile.md
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from speed_editing import CASES, flops, machine_rate
from torch.profiler import ProfilerActivity, profile

import lightning_edit.editors as editors
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.models.loading import load_language_model

#: Kinds of operators by their names in the profile; what is in none of them is elementwise.
KINDS = {
    "products with weights": ("mm", "addmm"),
    "attention": (
        "bmm",
        "baddbmm",
        "_softmax",
        "_softmax_backward_data",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "log-softmax and loss": (
        "_log_softmax",
        "_log_softmax_backward_data",
        "nll_loss_forward",
        "nll_loss_backward",
        "exp",
    ),
    "moving and filling": (
        "cat", "copy_", "fill_", "index", "index_select", "index_copy_", "gather", "index_add_",
        "_index_put_impl_",
    ),
    "making views and empty tensors": (
        "empty", "empty_strided", "as_strided", "view", "transpose", "slice", "select", "expand",
        "unsqueeze", "_unsafe_view", "reshape", "_reshape_alias", "split_with_sizes", "narrow",
    ),
}  # fmt: skip


def shares(events: Any) -> dict[str, float]:
    """Return seconds by kind of operator; counted are those of ATen and oneDNN's product."""
    kind_of = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}
    found = dict.fromkeys([*KINDS, "elementwise and sums"], 0.0)
    for event in events:
        if event.key == "mkldnn::_linear_pointwise":
            found["products with weights"] += event.self_cpu_time_total / 1e6
        elif event.key.startswith("aten::"):
            kind = kind_of.get(event.key, "elementwise and sums")
            found[kind] += event.self_cpu_time_total / 1e6
    return found


def measure(case_name: str, count: int) -> list[str]:
    """Return the lines of one case's table."""
    case = CASES[case_name]
    model, tokenizer = load_language_model(case.model)
    requests = AtlasDataModule(limit=count, split="test").edit_requests()
    editor = getattr(editors, case.editor)(**case.arguments).bind(model, tokenizer)
    batch = encode_batch(tokenizer, requests)
    editor.search(batch)
    begin = time.process_time()
    editor.search(batch)
    seconds = time.process_time() - begin
    operations = flops(lambda: editor.search(batch))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        editor.search(batch)
    by_kind = shares(profiler.key_averages())
    # A call of an operator costs more while it is watched, so the rest is too small, if anything.
    by_kind["Python, hooks and the autograd engine"] = max(0.0, seconds - sum(by_kind.values()))
    floor = operations / machine_rate()
    lines = [
        f"## {case_name}, {count} requests",
        "",
        f"Search: {1e3 * seconds / count:.1f} ms of processor time an edit. Its products alone, at "
        f"this machine's rate for large matrices: {1e3 * floor / count:.1f} ms "
        f"({seconds / floor:.1f} times less).",
        "",
        "| kind of operator | ms an edit | share |",
        "|---|---|---|",
    ]
    total = sum(by_kind.values())
    for kind, value in sorted(by_kind.items(), key=lambda item: -item[1]):
        lines.append(f"| {kind} | {1e3 * value / count:.1f} | {value / total:.0%} |")
    return [*lines, ""]


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--edits", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    lines = ["# Where the time of a target search goes", ""]
    lines += ["Made by `python benchmarks/speed/search_profile.py`, one thread. "]
    lines[-1] += f"The machine had a load of {load:.1f} when it began."
    lines += ["Times of operators are those of a watched run, and stand for shares.", ""]
    lines += measure("memit-atlas", options.edits)
    lines += measure("rome-atlas", min(20, options.edits))
    text = "\n".join(lines)
    print(text)
    if options.out is not None:
        options.out.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
