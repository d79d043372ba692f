"""A model at one point of a run, what was just written into it, and what was measured of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import lightning.pytorch as pl
import torch

from lightning_edit.distributed.sharding import Share
from lightning_edit.edits.delta import Delta
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.types import EditRequest

if TYPE_CHECKING:
    from lightning_edit.edits.ledger import Ledger

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class MeasurementDriver(pl.LightningModule):
    """A module that calls :meth:`MeasurementCallback.observe` itself, when it is time."""


@dataclass(frozen=True)
class EvalContext:
    """A model at one point of a run.

    Args:
        step: Edits that the stream has come to, or optimiser steps in any other training. 0 is the
            pristine model.
        model: The language model.
        tokenizer: Its tokenizer.
        requests: Edits written so far (``single``: the one in force); empty elsewhere.
        scores: Outcomes of their probes on this model, where they were asked already.
        ledger: What was written; ``None`` elsewhere.
        single_edit: Whether edits are measured each alone on the pristine model (``single``).
        rank: Number of this process.
        world_size: How many processes there are.
        device: Where metrics have their states, so that processes can add them.
        layout: How texts are laid out in the run's forward passes; ``None``: each scorer chooses.
    """

    step: int
    model: Any
    tokenizer: Any
    requests: Sequence[EditRequest] = ()
    scores: Sequence[ProbeScore] = ()
    ledger: "Ledger | None" = None
    single_edit: bool = False
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    layout: PassLayout | None = None

    @property
    def alone(self) -> bool:
        """The name of :attr:`single_edit` in earlier versions."""
        return self.single_edit

    def on_share(
        self, items: Sequence[_Item], work: Callable[[Sequence[_Item]], Sequence[_Result]]
    ) -> list[tuple[int, _Result]]:
        """Call :meth:`map_sharded`, by its name in earlier versions."""
        return self.map_sharded(items, work)

    def map_sharded(
        self, items: Sequence[_Item], work: Callable[[Sequence[_Item]], Sequence[_Result]]
    ) -> list[tuple[int, _Result]]:
        """Do work on this process's share of some items; see :meth:`Share.map`.

        Args:
            items: All items, the same on every process.
            work: One result an item. It must not wait for other processes by itself.

        Returns:
            Numbers and results of the items that are this process's to count; empty where there
            are fewer items than processes.
        """
        return Share(self.rank, self.world_size).map(items, work, self.model)


@dataclass(frozen=True)
class Commit:
    """One delta that was just written into the model.

    Args:
        context: The model now; ``context.requests`` are those of this commit.
        delta: What was written.
        seconds: How long each stage took: those that the editor tells apart, ``other`` for the
            rest of finding the delta, and ``commit``.
        session: The run; rolls back, stops and takes notes.
    """

    context: EvalContext
    delta: Delta
    seconds: Mapping[str, float]
    session: Any

    @property
    def moment(self) -> EvalContext:
        """The name of :attr:`context` in earlier versions."""
        return self.context


@dataclass(frozen=True)
class Measurement:
    """What was measured at one point of a run.

    Args:
        values: Finite numbers by name, ``<aspect>/<measure>``; what was not measured has no key.
        rows: This process's raw results, one mapping an item; the rows of all processes end up in
            one file.
    """

    values: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]] = ()
