"""One editor on one model, with the library and with the plain implementation beside it."""

import argparse
import gc
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpt2_shape
import torch
from reference import AlphaEditReference, Reference, force_one_by_one
from stopwatch import Stopwatch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import lightning_edit.editors as editors
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.outcomes import ProbeScore, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.models.loading import load_language_model
from lightning_edit.types import EditRequest


@dataclass(frozen=True)
class Case:
    """One editor on one model."""

    editor: str
    model: str
    edits: int
    at_least: float
    arguments: dict[str, Any] = field(default_factory=dict)
    reference_edits: int | None = None
    counted: int = 10


#: Settings that both ways must share by value; all others are the editors' defaults.
_MEMIT = {"moment_weight": 15_000.0, "clamp": 0.75}
_ALPHAEDIT = {"norm_weight": 10.0, "null_threshold": 0.1, "clamp": 0.75}
_ROME = {"clamp": 4.0}
CASES = {
    "memit-atlas": Case("MEMIT", "atlas", 100, 8.0, _MEMIT),
    # The fewer blocks lie above the highest edited one, the less has to run again and again.
    "memit-atlas-upper": Case("MEMIT", "atlas", 100, 8.0, _MEMIT | {"layers": [1, 2, 3]}),
    "alphaedit-atlas": Case("AlphaEdit", "atlas", 100, 8.0, _ALPHAEDIT),
    "rome-atlas": Case("ROME", "atlas", 20, 6.0, _ROME),
    "memit-gpt2": Case(
        "MEMIT", "gpt2", 20, 6.0, _MEMIT | {"layers": [3, 4, 5, 6, 7, 8]}, counted=2
    ),
    # Edits of protocol `single` are independent, so fewer of them give the same seconds per edit.
    "rome-gpt2": Case(
        "ROME", "gpt2", 20, 5.0, _ROME | {"layers": [5]}, reference_edits=4, counted=1
    ),
}


def material(case: Case, options: argparse.Namespace, folder: Path) -> tuple[Any, Any, Any, Any]:
    """Return model, tokenizer, requests and the editor's arguments."""
    count = min(case.edits, options.edits or case.edits)
    if case.model == "atlas":
        model, tokenizer = load_language_model("atlas")
        found = AtlasDataModule(limit=count, split="test").edit_requests()
        return model, tokenizer, found, case.arguments
    model, tokenizer = gpt2_shape.build(options.quick)
    layers = [1, 2] if options.quick and case.editor != "ROME" else case.arguments["layers"]
    layers = [2] if options.quick and case.editor == "ROME" else layers
    # MEMIT's templates have 10 tokens, ROME's 5 or 10; the full stop follows.
    shape = (20, 7) if case.editor == "ROME" else (5, 10)
    extra = case.arguments | {
        "layers": layers,
        "statistics": gpt2_shape.statistics(model, layers, folder / f"{case.editor}.safetensors"),
        "context_templates": gpt2_shape.templates(*shape),
    }
    return model, tokenizer, gpt2_shape.requests(count), extra


# ---------------------------------------------------------------------------------------- editing


@contextmanager
def watching_stages(editor: Any, clock: Stopwatch) -> Iterator[None]:
    """Count what an editor of the library does inside the ``with`` block by stage."""
    with ExitStack() as stack:
        stack.enter_context(clock.watching(editor, "search", "search"))
        stack.enter_context(clock.watching(editor, "all_at_subjects", "keys"))
        # Solvers are frozen values, so their class is watched.
        stack.enter_context(clock.watching(type(editor.solver), "solve", "solve"))
        yield


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python from looking for garbage while somebody is timed, as ``timeit`` does."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def timed_edit(
    editor: Any, requests: list[EditRequest], clock: Stopwatch
) -> tuple[Tensor, list[Delta]]:
    """Edit with the library; return targets and the updates."""
    with no_collection(), watching_stages(editor, clock), clock.stage("edit"):
        batch = encode_batch(editor.tokenizer, requests)
        deltas = [editor.edit(batch)] if editor.batched else editor.edit_independent(batch)
    return clock.last["search"].wanted, deltas


def timed_reference(
    editor: Any, requests: list[EditRequest], clock: Stopwatch, head_twice: bool = False
) -> tuple[Reference, Tensor, list[dict[str, Tensor]]]:
    """Edit with the plain implementation; return it, targets, and updates by parameter name."""
    plain = Reference(editor, clock, head_twice)
    if type(editor).__name__ == "AlphaEdit":
        plain = AlphaEditReference(editor, clock)
    name = plain.view.parameter
    with no_collection(), clock.stage("edit"):
        if editor.batched:
            targets, by_layer = plain.memit(requests)
            return plain, targets, [{name(layer): one for layer, one in by_layer.items()}]
        targets, each = plain.rome(requests)
    return plain, targets, [{name(plain.layers[0]): one} for one in each]


def evaluation_after(
    editor: Any, requests: list[EditRequest], deltas: list[Delta], agreement: dict[str, float]
) -> dict[str, Stopwatch]:
    """Score all probes under their edits in both ways, teacher forced."""
    scorer = Scorer(editor.language_model, editor.tokenizer, modes=("tf",))
    groups = [requests] if editor.batched else [[request] for request in requests]
    clocks = {"ours": Stopwatch(), "reference": Stopwatch()}
    worst = 0.0
    for group, delta in zip(groups, deltas, strict=False):
        probes = [probe for request in group for probe in probes_of(request)]
        with delta.applied(editor.language_model):
            with clocks["ours"].stage("evaluation"):
                scores = scorer.score(probes)
            with clocks["reference"].stage("evaluation"):
                plain = force_one_by_one(editor.language_model, editor.tokenizer, probes)
        worst = max(worst, loss_difference(scores, plain))
    agreement["evaluation_nats_max"] = worst
    return clocks


def loss_difference(scores: list[ProbeScore], plain: list[dict[str, list[float]]]) -> float:
    """Return the largest difference of a token's loss, in nats."""
    pairs = [
        (answer.nlls, losses[answer.text])
        for score, losses in zip(scores, plain, strict=True)
        for answer in score.forced
    ]
    return max(abs(a - b) for one, two in pairs for a, b in zip(one, two, strict=True))


def _flops_of_linear(hidden: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Return the operations of oneDNN's product, which PyTorch's counter does not know."""
    return 2 * math.prod(hidden) * out_shape[-1]


def flops(work: Callable[[], Any]) -> float:
    """Return the floating-point operations of some work's matrix products."""
    known = {torch.ops.mkldnn._linear_pointwise: _flops_of_linear}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        work()
    return float(counter.get_total_flops())


def machine_rate() -> float:
    """Return float32 operations per processor second in a large product, the best of five."""
    matrix = torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        for _ in range(4):
            matrix @ matrix
        best = min(best, (time.process_time() - begin) / 4)
    return 2 * 1024**3 / best


def floor(editor: Any, requests: list[EditRequest]) -> dict[str, Any]:
    """Count what the target searches must multiply, and what that takes at the machine's rate."""
    batch = encode_batch(editor.tokenizer, requests)
    ours = flops(lambda: editor.search(batch)) / len(requests)
    plain = Reference(editor, Stopwatch())
    theirs = flops(lambda: [plain.target(request) for request in requests]) / len(requests)
    rate = machine_rate()
    return {
        "counted_edits": len(requests),
        "gflop_per_edit": {"ours": round(ours / 1e9, 4), "reference": round(theirs / 1e9, 4)},
        "ratio_by_operation_count": round(theirs / ours, 2),
        "gflop_per_second": round(rate / 1e9, 1),
        "floor_seconds_per_edit": round(ours / rate, 5),
    }


def editing(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one case: both ways, by stage, and how far the results are apart."""
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer, requests, arguments = material(case, options, Path(folder))
        clocks = []
        few, theirs = requests[: case.reference_edits], Stopwatch()
        for number in range(options.repeats):
            # A new editor factors its second moments anew, as the first edit after binding does.
            editor: Any = getattr(editors, case.editor)(**arguments).bind(model, tokenizer)
            clocks.append(Stopwatch())
            targets, deltas = timed_edit(editor, requests, clocks[-1])
            if number == 0:
                # Own runs lie on both sides of it: the machine's speed drifts.
                plain, wanted, updates = timed_reference(editor, few, theirs)
        ours = sorted(clocks, key=lambda clock: clock.cpu["edit"])[len(clocks) // 2]
        record = {
            "editor": case.editor,
            "model": case.model,
            "layers": editor.edited_layers,
            "edits": len(requests),
            "reference_edits": len(few),
            "rows_per_request": len(editor.templates) + 1,
            "optimiser_steps": {
                "ours": statistics.mean(ours.last["search"].steps),
                "reference": statistics.mean(plain.steps),
            },
            "seconds_per_edit": {
                "ours": ours.per(len(requests)),
                "reference": theirs.per(len(few)),
            },
            "agreement": agreement(targets, deltas, wanted, updates),
        }
        after = evaluation_after(editor, few, deltas, record["agreement"])
        for who, clock in after.items():
            for unit, times in clock.per(len(few)).items():
                record["seconds_per_edit"][who][unit] |= times
        record["ratio"] = ratios(record["seconds_per_edit"])
        record["at_least"] = case.at_least
        if options.threads == 1:
            record["operations"] = floor(editor, requests[: case.counted])
    return record


def agreement(
    targets: Tensor, deltas: list[Delta], wanted: Tensor, updates: list[dict[str, Tensor]]
) -> dict[str, float]:
    """Return relative distances of target vectors and of updates."""
    of_targets = [_relative(a, b) for a, b in zip(targets, wanted, strict=False)]
    of_updates = [
        _relative(delta.weights[name].dense(), value)
        for delta, update in zip(deltas, updates, strict=False)
        for name, value in update.items()
    ]
    return {
        "z_relative_median": statistics.median(of_targets),
        "z_relative_max": max(of_targets),
        "delta_relative_max": max(of_updates),
    }


def ratios(seconds: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return how many times longer the plain implementation takes, by stage."""
    return {
        unit: {
            stage: round(seconds["reference"][unit][stage] / value, 2)
            for stage, value in times.items()
            if stage in seconds["reference"][unit] and value > 0
        }
        for unit, times in seconds["ours"].items()
    }


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
