"""Locality and portability callbacks, for ``EditTrainer`` and for any Lightning Trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from lightning_edit.callbacks.base import EvalContext, Measurement
from lightning_edit.callbacks.evaluation import EditEvaluation
from lightning_edit.datamodules.other_task import other_task_probes
from lightning_edit.evaluation.outcomes import ScoredProbe
from lightning_edit.metrics import summarise
from lightning_edit.types import EditRequest

_COUNTS = ("n", "probes", "tests")


class AspectEvaluation(EditEvaluation):
    """Evaluation of selected aspects only, such as locality.

    Under ``EditTrainer`` the session has already scored the probes of its edits: their outcomes are
    reused, and probes given here are added by kind. In any other Trainer it scores the given
    probes, as :class:`~lightning_edit.callbacks.EditEvaluation` does.
    """

    aspects: ClassVar[tuple[str, ...]] = ()
    """Aspects that are measured."""

    def measure(self, context: EvalContext) -> Measurement:
        """Score the probes of the selected aspects.

        Args:
            context: The model; under ``EditTrainer`` also the outcomes of its edits' probes.
        """
        own = super().measure(context)
        asked = [score for score in context.scores if score.aspect in self.aspects]
        values = self._select_aspects(own.values)
        if asked:
            kinds = {name: value for name, value in values.items() if "." in name}
            values = self._select_aspects(summarise(asked)) | kinds
        return replace(own, values=values)

    def _select_aspects(self, values: Mapping[str, float]) -> dict[str, float]:
        return {
            name: value
            for name, value in values.items()
            if name.partition("/")[0].partition(".")[0] in self.aspects
            and name.rpartition("/")[2] not in _COUNTS
        }

    def _probe_groups(self, further: Sequence[EditRequest]) -> list[list[ScoredProbe]]:
        units = (
            [item for item in unit if item.probe.aspect in self.aspects]
            for unit in super()._probe_groups(further)
        )
        return [unit for unit in units if unit]


class LocalityCallback(AspectEvaluation):
    """Locality (specificity) of edits: facts and small unrelated tasks that must not change.

    All three published definitions are reported: ``kept`` (agreement with the model before the
    first edit), ``em`` and ``token_acc`` (against the gold answer), ``margin_sign`` (the true
    answer is more probable than the edited one).

    Args:
        *args: See :class:`~lightning_edit.callbacks.EditEvaluation`.
        other_task: Number of small tasks to score at every point, of about a hundred; 0: none.
        **kwargs: See :class:`~lightning_edit.callbacks.EditEvaluation`.

    Example:
        >>> callback = LocalityCallback(other_task=20, every_n_steps=100)
        >>> # Trainer(callbacks=[callback]).fit(your_module, your_data)
    """

    aspects = ("locality",)

    def __init__(self, *args: Any, other_task: int = 100, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.other_task = other_task

    def _probe_groups(self, further: Sequence[EditRequest]) -> list[list[ScoredProbe]]:
        tasks = other_task_probes(self.other_task) if self.other_task else []
        return super()._probe_groups(further) + [
            [ScoredProbe(f"other_task-{number}", probe)] for number, probe in enumerate(tasks)
        ]


class PortabilityCallback(AspectEvaluation):
    """Portability of edits: aliases, reversed relations, multi-hop questions, and their premises.

    For multi-hop cases (MQuAKE), ``portability.multi_hop/passed`` comes with ``passed_known`` and
    ``known``: the score of the cases whose other hops the model knew before editing, and their
    share. Arguments as for :class:`~lightning_edit.callbacks.EditEvaluation`.
    """

    aspects = ("portability", "premise")
