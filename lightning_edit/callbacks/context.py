"""Context of an evaluation callback: the model at a step, the last commit, the measurement."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import lightning.pytorch as pl
import torch

from lightning_edit.distributed.sharding import Share
from lightning_edit.edits.delta import Delta
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.responder import Responder
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.types import EditRequest

if TYPE_CHECKING:
    from lightning_edit.edits.ledger import Ledger

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class MeasurementDriver(pl.LightningModule):
    """LightningModule that calls :meth:`MeasurementCallback.observe` itself, as an edit session."""


@dataclass(frozen=True)
class EvalContext:
    """Evaluation context: the model and the position in the run.

    Args:
        step: Number of edits so far, or of optimizer steps in any other training. 0 is the pristine
            model.
        model: The language model.
        tokenizer: Its tokenizer.
        requests: Edits committed so far (``single``: the one in force); empty in other training.
        scores: Outcomes of their probes on this model, where they were scored already.
        ledger: Ledger of the commits; ``None`` in other training.
        single_edit: Whether each edit is measured alone on the pristine model (``single``).
        rank: Rank of this process.
        world_size: Number of processes.
        device: Device of the metric states, so that processes can reduce them.
        layout: Layout of texts in the run's forward passes; ``None``: each scorer chooses.
        responder: What is asked in place of the bare model, with an editor that acts at run time.
        prompts: Tokenizer with the format of prompts; ``None``: plain text.
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
    responder: Responder | None = None
    prompts: PromptEncoder | None = None

    @property
    def encoder(self) -> PromptEncoder:
        """What tokenises questions to this model."""
        if self.prompts is not None:
            return self.prompts
        return PromptEncoder.for_model(self.model, self.tokenizer)

    @property
    def alone(self) -> bool:
        """Alias of :attr:`single_edit`, its name in earlier versions."""
        return self.single_edit

    def on_share(
        self, items: Sequence[_Item], work: Callable[[Sequence[_Item]], Sequence[_Result]]
    ) -> list[tuple[int, _Result]]:
        """Call :meth:`map_sharded`; alias, its name in earlier versions."""
        return self.map_sharded(items, work)

    def map_sharded(
        self, items: Sequence[_Item], work: Callable[[Sequence[_Item]], Sequence[_Result]]
    ) -> list[tuple[int, _Result]]:
        """Map a function over this rank's share of the items; see :meth:`Share.map`.

        Args:
            items: All items, the same on every process.
            work: Returns one result per item. It must not wait for other processes by itself.

        Returns:
            Indices and results of the items that this process counts; empty where there are fewer
            items than processes.
        """
        return Share(self.rank, self.world_size).map(items, work, self.model)


@dataclass(frozen=True)
class Commit:
    """Commit of one delta that was just written into the model.

    Args:
        context: The edited model; ``context.requests`` are those of this commit.
        delta: The committed delta.
        seconds: Wall time of each stage: the editor's own stages, ``other`` for the rest of finding
            the delta, and ``commit``.
        session: The edit session; callbacks use it to roll back, stop and record events.
    """

    context: EvalContext
    delta: Delta
    seconds: Mapping[str, float]
    session: Any

    @property
    def moment(self) -> EvalContext:
        """Alias of :attr:`context`, its name in earlier versions."""
        return self.context


@dataclass(frozen=True)
class Measurement:
    """Metric values and raw rows of one measurement.

    Args:
        values: Finite values by name, ``<aspect>/<measure>``; what was not measured has no key.
        rows: This process's raw results, one mapping per item; the rows of all processes are
            written to one file.
    """

    values: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]] = ()
