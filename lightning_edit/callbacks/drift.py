"""Drift callback: forgetting of earlier edits, weight growth, and shift of hidden states."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_edit.callbacks.base import (
    Commit,
    EvalContext,
    Measurement,
    MeasurementCallback,
    gather,
)
from lightning_edit.callbacks.retention import RetentionHistory
from lightning_edit.evaluation.corpus import TextReader, fixed_texts
from lightning_edit.metrics import HiddenDistance, Trend, WeightGrowth, summarise
from lightning_edit.metrics.aspects import to_floats

if TYPE_CHECKING:
    from lightning_edit.edits.ledger import Ledger


class DriftCallback(MeasurementCallback):
    """Drift under sequential editing: retention of old edits, weight norms, hidden states.

    * ``drift.reliability/retention@tf``: of the earlier edits that were correct after their own
      commit, the share that still is; ``…/half_life@tf``: later edits after which half is lost;
      ``…/earlier@tf``: share of all earlier edits that are correct. The same for ``generalization``
      and ``gen``. ``EditTrainer`` only, protocol ``sequential``.
    * ``drift/l1_growth``, ``drift/l2_growth``, ``drift/update_norm``: weight norms. Under
      ``EditTrainer`` of the weights that edits in force change; in other training of those that
      ``weights`` matches, without ``update_norm``, since the old values are not kept.
    * ``drift/hidden_cosine``, ``drift/hidden_l2``: distance of hidden states on fixed texts.
    * ``drift.trend/<name>``: slope of each, and of ``locality``, per 100 edits or steps; in other
      training a step is one point, however often it is measured.

    Definitions: ``docs/metrics.md``.

    Args:
        texts: A ``.txt`` or ``.jsonl`` file, or texts; ``None``: sentences of the embedded atlas.
        limit: Number of texts.
        layers: Indices of the blocks whose hidden states are compared, from 0; ``None``: the middle
            one and the last.
        after_commit: Whether each edit is scored right after its commit, as the reference for
            retention; otherwise its first evaluation is the reference.
        weights: Regular expression for parameter names in other training; by default every matrix
            that is trained.
        max_tokens: Texts are truncated to this many tokens.
        batch_size: Texts per batch.
        options: See :class:`~lightning_edit.callbacks.base.MeasurementCallback`.
    """

    def __init__(
        self,
        texts: str | list[str] | None = None,
        limit: int = 50,
        layers: list[int] | None = None,
        after_commit: bool = True,
        weights: str | None = None,
        max_tokens: int = 128,
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.texts = texts
        self.limit = limit
        self.layers = layers
        self.after_commit = after_commit
        self.weights = weights
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.history = RetentionHistory()
        self._pristine_hidden: Tensor | None = None
        self._pristine_norms: dict[str, tuple[float, float]] = {}
        self._trends: dict[str, Trend] = {}
        self._trend_step = -1
        self.require(
            limit=(limit >= 1, "1 or more"),
            max_tokens=(max_tokens >= 2, "2 or more"),
            batch_size=(batch_size >= 1, "1 or more"),
        )

    # ------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state: pristine reference, retention history and trends."""
        return super().state_dict() | {
            "history": self.history.to_dict(),
            "states": self._pristine_hidden,
            "norms": {name: list(pair) for name, pair in self._pristine_norms.items()},
            "trends": {name: trend.sums.tolist() for name, trend in self._trends.items()},
            "trend_step": self._trend_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the checkpoint state that :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers and a tensor.
        """
        super().load_state_dict(state_dict)
        self.history = RetentionHistory.from_dict(state_dict["history"])
        self._pristine_hidden = state_dict["states"]
        self._pristine_norms = {name: (l1, sq) for name, (l1, sq) in state_dict["norms"].items()}
        self._trends = {}
        for name, sums in state_dict["trends"].items():
            self._trend(name).update_sums(sums)
        # Absent in checkpoints of older versions.
        self._trend_step = state_dict.get("trend_step", state_dict["step"])

    def reset(self) -> None:
        """Reset the state before a new run."""
        super().reset()
        self.history, self._pristine_hidden = RetentionHistory(), None
        self._pristine_norms, self._trends, self._trend_step = {}, {}, -1

    # -------------------------------------------------------------------------------- measuring

    def on_commit(self, commit: Commit) -> None:
        """Score an edit's probes right after its commit.

        Args:
            commit: The commit.
        """
        if commit.context.single_edit:
            return
        self.history.record_commit(commit.context)
        if self.after_commit:
            self.history.score_after_commit(
                commit.session.evaluation.scorer, commit.context.requests
            )

    def measure(self, context: EvalContext) -> Measurement:
        """Measure drift from the pristine model of the first call.

        Args:
            context: The model.
        """
        values, rows = self.history.measure(context)
        moved = self._hidden_distance(context) | self._weight_growth(context)
        # Elsewhere, validations and tests measure a step again. Of a run each point counts, also
        # those of single edits, which are all after one.
        if context.ledger is not None or context.step > self._trend_step:
            self._trend_step = context.step
            points = moved | _earlier_accuracy(values) | _kept_locality(context)
            for name, value in points.items():
                self._trend(name).update(context.step, value)
        trends = {
            f"drift.trend/{name}": float(slope)
            for name, trend in self._trends.items()
            for slope in trend.compute().values()
        }
        named = {f"drift/{name}": value for name, value in moved.items()}
        return Measurement(values | named | trends, rows)

    def _trend(self, name: str) -> Trend:
        # Every process measures the same values, so there is nothing to reduce.
        return self._trends.setdefault(name, Trend(sync_on_compute=False))

    def _hidden_distance(self, context: EvalContext) -> dict[str, float]:
        reader = TextReader(context.model, context.encoder, self.batch_size, self.max_tokens)
        texts = fixed_texts(self.texts, self.limit)
        found = context.map_sharded(texts, lambda share: list(reader.hidden(share, self.layers)))
        if self._pristine_hidden is None:
            everyone = dict(gather(found))
            self._pristine_hidden = torch.stack([everyone[number] for number in range(len(texts))])
        metric = HiddenDistance().to(context.device)
        width = self._pristine_hidden.shape[-1]
        now = torch.cat([torch.empty(0, width), *(state for _, state in found)])
        before = torch.cat([torch.empty(0, width), *(self._pristine_hidden[n] for n, _ in found)])
        metric.update(now, before)
        return to_floats(metric.compute())

    def _weight_growth(self, context: EvalContext) -> dict[str, float]:
        metric = WeightGrowth().to(context.device)
        metric.update(0.0, 0.0, 0.0, 0.0)  # for ranks that add no weight
        if context.ledger is not None:
            _add_edited_weights(metric, context.ledger)
        else:
            named = dict(_named_matrices(context.model, self.weights))
            sums = {name: _l1_and_squares(parameter) for name, parameter in named.items()}
            if not self._pristine_norms:
                self._pristine_norms = sums
            # Every process sees all weights; rank 0 counts them.
            for name in sums if context.rank == 0 else ():
                if name in self._pristine_norms:
                    metric.update(*sums[name], *self._pristine_norms[name])
        return to_floats(metric.compute())


def _earlier_accuracy(values: Mapping[str, float]) -> dict[str, float]:
    """Return the accuracy of earlier edits, by trend name."""
    return {
        name.removeprefix("drift.").replace("/", "."): value
        for name, value in values.items()
        if "/earlier@" in name
    }


def _kept_locality(context: EvalContext) -> dict[str, float]:
    """Return locality (``kept``) on the probes that must not change, by trend name."""
    found = summarise(context.scores)
    names = {f"locality.kept@{mode}": f"locality/kept@{mode}" for mode in ("tf", "gen")}
    return {short: found[name] for short, name in names.items() if name in found}


def _add_edited_weights(metric: WeightGrowth, ledger: "Ledger") -> None:
    for touched in ledger.touched.values():
        before = touched.pristine
        now = touched.handle.read()
        moved = float((now - before.to(now.device, torch.float64)).square().sum())
        metric.update(*_l1_and_squares(now), *_l1_and_squares(before), moved)


def _named_matrices(model: nn.Module, pattern: str | None) -> Iterable[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        wanted = parameter.requires_grad if pattern is None else re.search(pattern, name)
        if wanted and parameter.ndim == 2:
            yield name, parameter


@torch.no_grad()
def _l1_and_squares(weight: Tensor) -> tuple[float, float]:
    """Return the L1 norm and the squared L2 norm of a weight; a sharded weight is gathered."""
    values = weight.detach()
    whole = values.full_tensor() if isinstance(values, DTensor) else values
    whole = whole.double()
    return float(whole.abs().sum()), float(whole.square().sum())
