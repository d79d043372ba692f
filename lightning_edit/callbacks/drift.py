"""What later edits do to earlier ones, to the weights, and to hidden states on unrelated text."""

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
from lightning_edit.callbacks.retention import History
from lightning_edit.evaluation.corpus import TextReader, fixed_texts
from lightning_edit.metrics import HiddenDistance, Trend, WeightGrowth, summarise
from lightning_edit.metrics.aspects import plain

if TYPE_CHECKING:
    from lightning_edit.edits.ledger import Ledger


class DriftCallback(MeasurementCallback):
    """Measures how a sequence of edits wears a model: old edits, weights, hidden states.

    * ``drift.reliability/retention@tf``: of the earlier edits whose answer was right after their
      own commit, the share that still is; ``…/half_life@tf``: later edits after which half is lost;
      ``…/earlier@tf``: share of all earlier edits that are right. The same for ``generalization``
      and ``gen``. Our loop, protocol ``sequential``.
    * ``drift/l1_growth``, ``drift/l2_growth``, ``drift/update_norm``: norms of the weights. In our
      loop those that edits in force change; in other trainings those that ``weights`` names,
      without ``update_norm``, since the old values are not kept.
    * ``drift/hidden_cosine``, ``drift/hidden_l2``: distance of hidden states on fixed texts.
    * ``drift.trend/<name>``: slope of each, and of ``locality``, per 100 edits or steps.

    Definitions: ``docs/metrics.md``.

    Args:
        texts: A ``.txt`` or ``.jsonl`` file, or texts; ``None``: sentences of the embedded atlas.
        limit: How many of them.
        layers: Numbers of the blocks whose hidden states are compared, from 0; ``None``: the middle
            one and the last.
        after_commit: Whether each edit is asked right after its commit, which is what retention
            compares with; otherwise the first evaluation counts as that.
        weights: Regular expression for the names of weights in other trainings; the default is
            every matrix that is trained.
        max_tokens: Texts are cut to so many tokens.
        batch_size: Texts that go through the model together.
        options: As for :class:`~lightning_edit.callbacks.base.MeasurementCallback`.
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
        self.history = History()
        self._states: Tensor | None = None
        self._norms: dict[str, tuple[float, float]] = {}
        self._trends: dict[str, Trend] = {}

    # ------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return what was before the first edit, and what became of every edit."""
        return super().state_dict() | {
            "history": self.history.to_dict(),
            "states": self._states,
            "norms": {name: list(pair) for name, pair in self._norms.items()},
            "trends": {name: trend.sums.tolist() for name, trend in self._trends.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers and a tensor.
        """
        super().load_state_dict(state_dict)
        self.history = History.from_dict(state_dict["history"])
        self._states = state_dict["states"]
        self._norms = {name: (l1, sq) for name, (l1, sq) in state_dict["norms"].items()}
        self._trends = {}
        for name, sums in state_dict["trends"].items():
            self._trend(name).update_sums(sums)

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self.history, self._states = History(), None
        self._norms, self._trends = {}, {}

    # -------------------------------------------------------------------------------- measuring

    def on_commit(self, commit: Commit) -> None:
        """Ask an edit right after its commit.

        Args:
            commit: What was written.
        """
        if commit.context.single_edit:
            return
        self.history.written(commit.context)
        if self.after_commit:
            self.history.ask(commit.session.evaluation.scorer, commit.context.requests)

    def measure(self, context: EvalContext) -> Measurement:
        """Measure drift against the model of the first call.

        Args:
            context: The model.
        """
        values, rows = self.history.measure(context)
        moved = self._hidden(context) | self._growth(context)
        for name, value in (moved | _earlier(values) | _locality(context)).items():
            self._trend(name).update(context.step, value)
        trends = {
            f"drift.trend/{name}": float(slope)
            for name, trend in self._trends.items()
            for slope in trend.compute().values()
        }
        named = {f"drift/{name}": value for name, value in moved.items()}
        return Measurement(values | named | trends, rows)

    def _trend(self, name: str) -> Trend:
        # Every process measures the same values, so there is nothing to add up.
        return self._trends.setdefault(name, Trend(sync_on_compute=False))

    def _hidden(self, context: EvalContext) -> dict[str, float]:
        reader = TextReader(context.model, context.tokenizer, self.batch_size, self.max_tokens)
        texts = fixed_texts(self.texts, self.limit)
        found = context.map_sharded(texts, lambda share: list(reader.hidden(share, self.layers)))
        if self._states is None:
            everyone = dict(gather(found))
            self._states = torch.stack([everyone[number] for number in range(len(texts))])
        metric = HiddenDistance().to(context.device)
        width = self._states.shape[-1]
        now = torch.cat([torch.empty(0, width), *(state for _, state in found)])
        before = torch.cat([torch.empty(0, width), *(self._states[n] for n, _ in found)])
        metric.update(now, before)
        return plain(metric.compute())

    def _growth(self, context: EvalContext) -> dict[str, float]:
        metric = WeightGrowth().to(context.device)
        metric.update(0.0, 0.0, 0.0, 0.0)  # where there is nothing to add
        if context.ledger is not None:
            _add_touched(metric, context.ledger)
        else:
            named = dict(_matrices(context.model, self.weights))
            sums = {name: _sums(parameter) for name, parameter in named.items()}
            if not self._norms:
                self._norms = sums
            # Every process sees all weights; the first one counts them.
            for name in sums if context.rank == 0 else ():
                if name in self._norms:
                    metric.update(*sums[name], *self._norms[name])
        return plain(metric.compute())


def _earlier(values: Mapping[str, float]) -> dict[str, float]:
    """Return how many earlier edits are right, by names for their trends."""
    return {
        name.removeprefix("drift.").replace("/", "."): value
        for name, value in values.items()
        if "/earlier@" in name
    }


def _locality(context: EvalContext) -> dict[str, float]:
    """Return what was kept of what must not change, by names for their trends."""
    found = summarise(context.scores)
    names = {f"locality.kept@{mode}": f"locality/kept@{mode}" for mode in ("tf", "gen")}
    return {short: found[name] for short, name in names.items() if name in found}


def _add_touched(metric: WeightGrowth, ledger: "Ledger") -> None:
    for touched in ledger.touched.values():
        before = touched.pristine
        now = touched.handle.read()
        moved = float((now - before.to(now.device, torch.float64)).square().sum())
        metric.update(*_sums(now), *_sums(before), moved)


def _matrices(model: nn.Module, pattern: str | None) -> Iterable[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        wanted = parameter.requires_grad if pattern is None else re.search(pattern, name)
        if wanted and parameter.ndim == 2:
            yield name, parameter


@torch.no_grad()
def _sums(weight: Tensor) -> tuple[float, float]:
    """Return the sums of absolute values and of squares; of all parts of a spread weight."""
    values = weight.detach()
    whole = values.full_tensor() if isinstance(values, DTensor) else values
    whole = whole.double()
    return float(whole.abs().sum()), float(whole.square().sum())
