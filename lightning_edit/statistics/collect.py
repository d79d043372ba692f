"""Collect key statistics (covariance) of all requested layers in one pass over text."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_edit.distributed.sharding import Share
from lightning_edit.exceptions import DataError, NotFiniteError
from lightning_edit.functional.shrinkage import Target, shrink
from lightning_edit.functional.statistics import FourthMoments, SecondMoment
from lightning_edit.inference.hooks import Side, capture
from lightning_edit.models.eval_mode import in_eval_mode
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weight, weights_hash
from lightning_edit.statistics.moments import Moments
from lightning_edit.statistics.partial import PartialSums, Progress
from lightning_edit.statistics.windows import Position, Window, windows

#: Suffix of the metric name of a module's fourth moments.
_FOURTH = "@fourth"


def default_batch_tokens(device: torch.device | str) -> int:
    """Return the default number of tokens per forward pass: 1024 on a CPU, else 4096.

    Args:
        device: Device of the model.
    """
    return 1024 if torch.device(device).type == "cpu" else 4096


@torch.no_grad()
def collect(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[str],
    layers: Sequence[int],
    max_tokens: int | None = None,
    max_length: int = 1024,
    batch_tokens: int | None = None,
    progress: Callable[[Position], None] | None = None,
    partial: PartialSums | None = None,
    share: Share | None = None,
    shrinkage: Target | None = None,
) -> Moments:
    """Collect the second moments of MLP down-projection inputs (keys) of all layers, in one pass.

    Weights narrower than float32 run in float32, on a copy; the sums are in float64. Memory depends
    on the layers and on ``batch_tokens``, not on the length of the text.

    Args:
        model: The language model, unedited.
        tokenizer: Its tokenizer.
        texts: Documents; read once as a stream, never all in memory.
        layers: Block numbers.
        max_tokens: Token budget; ``None``: no limit.
        max_length: Documents are truncated to this many tokens, and to the model's context length.
        batch_tokens: Tokens in one forward pass, padding included; ``None``: see
            :func:`default_batch_tokens`.
        progress: Callback after every forward pass, with the position in the text.
        partial: File of partial sums, to resume an interrupted run; ``None``: no resume. It must
            belong to the same model, text and arguments. Passes keep their order, so a resumed run
            is bit-identical to an uninterrupted one.
        share: Shard of this process among several; each returns the moments of all, if
            ``torch.distributed`` is initialised. They equal those of one process up to the order of
            float64 additions.
        shrinkage: Target of the shrinkage of moments of few tokens; ``None``: no shrinkage.

    Returns:
        The moments.

    Raises:
        DataError: If the texts hold no token, or have changed since the interruption.
        NotFiniteError: If a layer's keys are not finite; no partial sums of them are kept.
        StatisticsWriteError: If partial sums cannot be written.
    """
    share = share or Share()
    view = resolve(model)
    names = [view.down_projection(layer) for layer in layers]
    device = view.embeddings.get_parameter("weight").device
    batch_tokens = batch_tokens or default_batch_tokens(device)
    model_hash, limit = weights_hash(model), _max_length(model, max_length)
    widths = {name: weight(model, f"{name}.weight").shape[1] for name in names}
    metrics: dict[str, Metric] = {
        name: SecondMoment(width).to(device) for name, width in widths.items()
    }
    if shrinkage is not None:
        metrics |= {name + _FOURTH: FourthMoments().to(device) for name in names}
    start = Progress(Position()) if partial is None else partial.load(metrics)
    for name, metric in metrics.items():
        # Marks the metric as updated, also for restored sums and for a process without a pass.
        metric.update(torch.empty(0, widths[name.removesuffix(_FOURTH)], device=device))
    accumulator = _KeyAccumulator(_in_float32(model), metrics, device)
    end = start.window
    for window in windows(tokenizer, texts, limit, max_tokens, batch_tokens, start.window):
        done = 0
        if window.before == start.window:
            start.check(window)
            done = start.passes
        tokens = sum(_count_tokens(batch) for batch in window.batches[:done])
        for number, batch in enumerate(window.batches[done:], start=done):
            if share.mine(window.before.passes + number):
                accumulator.update(batch)
            tokens += _count_tokens(batch)
            if partial is not None:
                here = Progress(window.before, number + 1, window.after.read)
                partial.save_when_due(metrics, here)
            if progress is not None:
                progress(_position_in_window(window, number + 1, tokens))
        end = window.after
    if not end.tokens:
        raise DataError("the texts hold no token; give a file with one document a line")
    values = {name: metric.compute() for name, metric in metrics.items()}
    for name, value in values.items():
        # Moments are kept in float32, which holds less than the sums.
        _require_finite(value if name.endswith(_FOURTH) else value.float(), name)
    found = Moments(
        {name: values[name] for name in names},
        end.tokens,
        model_hash,
        end.seen,
        added_ids(tokenizer),
    )
    if shrinkage is not None:
        found = _shrink_moments(found, {name: values[name + _FOURTH] for name in names}, shrinkage)
    return replace(found, matrices={name: m.float() for name, m in found.matrices.items()})


def _shrink_moments(moments: Moments, fourth: Mapping[str, Tensor], target: Target) -> Moments:
    shrunk = {
        name: shrink(matrix, moments.tokens, float(fourth[name][0]), float(fourth[name][1]), target)
        for name, matrix in moments.matrices.items()
    }
    return replace(
        moments,
        matrices={name: each.moment for name, each in shrunk.items()},
        intensities={name: each.intensity for name, each in shrunk.items()},
        target=target,
    )


class _KeyAccumulator:
    """Accumulator of keys: runs the model and updates each module's metrics with its inputs."""

    def __init__(
        self, model: nn.Module, metrics: Mapping[str, Metric], device: torch.device
    ) -> None:
        self.model = model
        self.metrics = metrics
        self.device = device
        self.wanted: dict[str, Side] = {name.removesuffix(_FOURTH): "input" for name in metrics}

    def update(self, batch: list[list[int]]) -> None:
        """Run one batch and add its keys to the metrics, padding excluded."""
        ids, mask = _pad_right(batch, self.device)
        with in_eval_mode(self.model), capture(self.model, self.wanted, stop=True) as keys:
            self.model(input_ids=ids, attention_mask=mask, use_cache=False)
        read = {name: value[mask.bool()] for name, value in keys.items()}
        for name, value in read.items():
            _require_finite(value, name)
        for name, metric in self.metrics.items():
            metric.update(read[name.removesuffix(_FOURTH)])


def _require_finite(value: Tensor, name: str) -> None:
    """Refuse keys or moments of a layer that overflow: editors would shrink or invert them."""
    if not bool(torch.isfinite(value).all()):
        raise NotFiniteError(
            f"the statistics of {name.removesuffix(_FOURTH)} are not finite: the model's hidden "
            "states overflow there. Check the model's weights; statistics that were collected "
            "before are unchanged"
        )


def added_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the special token ids that a tokenizer adds to every text, such as BOS."""
    return tuple(tokenizer("")["input_ids"])


def _in_float32(model: nn.Module) -> nn.Module:
    narrow = (torch.float16, torch.bfloat16)
    if any(parameter.dtype in narrow for parameter in model.parameters()):
        return copy.deepcopy(model).float()
    return model


def _position_in_window(window: Window, passes: int, tokens: int) -> Position:
    """Return the approximate text position of a pass inside a window, for a progress bar."""
    before, after = window.before, window.after
    share = tokens / max(1, after.tokens - before.tokens)
    return Position(
        before.texts + round(share * (after.texts - before.texts)),
        before.tokens + tokens,
        before.passes + passes,
    )


def _max_length(model: nn.Module, max_length: int) -> int:
    config: Any = model.config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return max_length if positions is None else min(max_length, int(positions))


def _count_tokens(batch: list[list[int]]) -> int:
    return sum(len(ids) for ids in batch)


def _pad_right(batch: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return right-padded token ids, and their attention mask."""
    ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids.to(device), mask.to(device)
