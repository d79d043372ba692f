"""Memory editors beside a plain port of the published loops: GRACE and WISE, one thread.

The plain loops run the whole model over the whole text in every step, as the authors' code does,
with the same rows, steps and settings; what they learn is compared as well. Times are CPU seconds
of this process, taken in turns, so that a loaded machine disturbs both alike. The embedded model
has five blocks, of which one (GRACE) or two (WISE) must run again in every step; so it is measured
with sixteen blocks of random weights as well, where the share is that of larger models.

On models as small as these a step is a row of small operators, and its time is their dispatch. The
floor beside each row is the number of operators in an edit times the time of the cheapest one (an
addition of two vectors of the model's width, without autograd): no loop of the same operators can
be faster, however little it computes.

Run:  python benchmarks/speed/memory_speed.py [--edits 4] [--rounds 3]
Writes benchmarks/results/memory_speed.json.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from lightning_edit import load_language_model
from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import GRACE, WISE
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.functional.side_memory import margin_loss
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.hooks import hooked
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch

RESULTS = Path(__file__).parent.parent / "results" / "memory_speed.json"
AT_LEAST = 3.0


def answer_nll(model: Any, rows: AnswerRows) -> Tensor:
    """Return the negative log-likelihood of the answers' tokens; logits at every position."""
    logits = model(input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False).logits
    chosen = logits[rows.rows, rows.positions]
    return torch.nn.functional.cross_entropy(chosen, rows.targets, reduction="none")


def plain_grace(editor: GRACE, batch: EditBatch) -> Tensor:
    """Train a value as the authors' loop does: whole passes, the value put in place by a hook."""
    model, item = editor.language_model, batch.encoded[0]
    rows = AnswerRows.pad([(item.prompt_ids, item.target_ids)])
    last = len(item.prompt_ids) - 1
    size = editor.view.hidden_size
    value = editor.cold_value(torch.zeros(size), batch.seed).requires_grad_()
    optimizer = torch.optim.Adam([value], lr=editor.lr)

    def replace(module: Any, args: Any, output: Tensor) -> Tensor:
        new = output.clone()
        new[:, last] = value
        return new

    with hooked(model.get_submodule(editor.module), after=replace):
        for _ in range(editor.steps):
            loss = answer_nll(model, rows).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    return value.detach()


def plain_wise(editor: WISE, batch: EditBatch) -> Tensor:
    """Train a side matrix as the authors' loop does: two products, a masked gradient, SGD."""
    model = editor.language_model
    texts = editor.training_rows(batch.requests[0], batch.seed)
    margins = editor._calibrated()
    module = model.get_submodule(editor.module)
    original = weight(model, f"{editor.module}.weight").read(torch.float32)
    side = original.clone().requires_grad_()
    mask = torch.zeros(original.numel())
    mask[editor.cells(0)] = 1.0
    mask = mask.view(original.shape)
    optimizer = torch.optim.SGD([side], lr=editor.lr, weight_decay=editor.weight_decay)
    outputs: list[Tensor] = []

    def replace(module: Any, args: Any, output: Tensor) -> Tensor:
        new = torch.nn.functional.linear(args[0], side, module.bias)
        outputs[:] = [output, new]
        return new

    with hooked(module, after=replace):
        for _ in range(editor.steps):
            loss = texts.answer_loss(answer_nll(model, texts.rows))
            levels = texts.levels((outputs[1] - outputs[0]).norm(dim=-1))
            loss = loss + margin_loss(levels[: texts.edited], levels[texts.edited :], margins)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            assert side.grad is not None
            side.grad *= mask
            optimizer.step()
            with torch.no_grad():
                limit = editor.norm_constraint
                assert limit is not None
                side.clamp_(original - limit, original + limit)
    return (side.detach() - original).flatten()[editor.cells(0)]


def seconds(work: Callable[[EditBatch], Tensor], batches: list[EditBatch]) -> tuple[float, Tensor]:
    """Return the CPU seconds per edit, and what the last edit learnt."""
    begin = time.process_time()
    for batch in batches:
        found = work(batch)
    return (time.process_time() - begin) / len(batches), found


class Counting(TorchDispatchMode):
    """Counts the operators that run, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators(work: Callable[[EditBatch], Tensor], batch: EditBatch) -> int:
    """Return the number of operators that an edit runs."""
    with Counting() as counting:
        work(batch)
    return counting.count


def cheapest(width: int, calls: int = 100_000) -> float:
    """Return the CPU seconds of an addition of two vectors."""
    one, other = torch.ones(width), torch.ones(width)
    with torch.inference_mode():
        begin = time.process_time()
        for _ in range(calls):
            torch.add(one, other)
        return (time.process_time() - begin) / calls


def deeper(model: Any, blocks: int) -> Any:
    """Return a model of the same widths with more blocks, of random weights."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = blocks
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def measure(name: str, blocks: int, edits: int, rounds: int) -> dict[str, Any]:
    """Time one editor beside its plain loop."""
    model, tokenizer = load_language_model("atlas")
    if blocks != model.config.num_hidden_layers:
        model = deeper(model, blocks)
    data = AtlasDataModule(limit=edits)
    editor: Any = (GRACE if name == "GRACE" else WISE)()
    editor.bind(model, tokenizer)
    key, plain = ("value", plain_grace) if name == "GRACE" else ("values", plain_wise)
    batches = [encode_batch(editor.prompts, [one]) for one in data.edit_requests()]
    if name == "WISE":  # an untimed edit samples the templates and calibrates the margins
        editor.edit(batches[0])
    ours, theirs = [], []
    for _ in range(rounds):
        spent, mine = seconds(lambda one: editor.edit(one).state[key][0], batches)
        ours.append(spent)
        spent, other = seconds(lambda one: plain(editor, one), batches)
        theirs.append(spent)
    ratio = [b / a for a, b in zip(ours, theirs, strict=True)]
    own_calls = operators(lambda one: editor.edit(one).state[key][0], batches[0])
    plain_calls = operators(lambda one: plain(editor, one), batches[0])
    call = cheapest(editor.view.hidden_size)
    return {
        "editor": name,
        "blocks": blocks,
        "blocks_that_run_again": blocks - editor.block - (name == "GRACE"),
        "edits": edits,
        "steps": editor.steps,
        "seconds_per_edit": statistics.median(ours),
        "plain_seconds_per_edit": statistics.median(theirs),
        "times_as_fast": statistics.median(ratio),
        "operators": own_calls,
        "plain_operators": plain_calls,
        "seconds_of_the_cheapest_operator": call,
        "dispatch_floor_seconds": own_calls * call,
        "times_the_floor": statistics.median(ours) / (own_calls * call),
        "apart": float((mine - other).norm() / other.norm()),
    }


def main() -> None:
    """Measure both and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(name, blocks, given.edits, given.rounds)
        for blocks in (5, 16)
        for name in ("GRACE", "WISE")
    ]
    RESULTS.write_text(
        json.dumps({"machine": machine(), "at_least": AT_LEAST, "rows": rows}, indent=2) + "\n"
    )
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
