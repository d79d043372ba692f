"""Locality and portability by themselves, in our loop and in anyone's Trainer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from lightning_edit.callbacks.base import EvalContext, Measurement
from lightning_edit.callbacks.evaluation import EditEvaluation
from lightning_edit.datamodules.other_task import other_task_probes
from lightning_edit.evaluation.outcomes import ScoredProbe
from lightning_edit.metrics import summarise

_COUNTS = ("n", "probes", "tests")


class AspectEvaluation(EditEvaluation):
    """Measures some aspects and says nothing of the others.

    In our loop the session has asked the probes of its edits already; their outcomes are used, and
    questions given here come on top, by kind. Elsewhere it asks what it was given, as
    :class:`~lightning_edit.callbacks.EditEvaluation` does.
    """

    needs_questions = False
    aspects: ClassVar[tuple[str, ...]] = ()
    """What is measured."""

    def measure(self, context: EvalContext) -> Measurement:
        """Score the questions of the aspects.

        Args:
            context: The model, and in our loop the outcomes of its edits' probes.
        """
        own = super().measure(context)
        asked = [score for score in context.scores if score.aspect in self.aspects]
        values = self._named(own.values)
        if asked:
            kinds = {name: value for name, value in values.items() if "." in name}
            values = self._named(summarise(asked)) | kinds
        return replace(own, values=values)

    def _named(self, values: Mapping[str, float]) -> dict[str, float]:
        return {
            name: value
            for name, value in values.items()
            if name.partition("/")[0].partition(".")[0] in self.aspects
            and name.rpartition("/")[2] not in _COUNTS
        }

    def _units(self) -> list[list[ScoredProbe]]:
        units = (
            [item for item in unit if item.probe.aspect in self.aspects]
            for unit in super()._units()
        )
        return [unit for unit in units if unit]


class LocalityCallback(AspectEvaluation):
    """Measures what must not change, with small tasks that have nothing to do with any edit.

    The three published definitions stand side by side: ``kept`` (agreement with the model before
    the first edit), ``em`` and ``token_acc`` (against the gold answer), ``margin_sign`` (the true
    answer is more probable than the edit's).

    Args:
        *args: As for :class:`~lightning_edit.callbacks.EditEvaluation`.
        other_task: How many small tasks to ask at every point, of about a hundred; 0: none.
        **kwargs: As for :class:`~lightning_edit.callbacks.EditEvaluation`.

    Example:
        >>> callback = LocalityCallback(other_task=20, every_n_steps=100)
        >>> # Trainer(callbacks=[callback]).fit(your_module, your_data)
    """

    aspects = ("locality",)

    def __init__(self, *args: Any, other_task: int = 100, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.other_task = other_task

    def _units(self) -> list[list[ScoredProbe]]:
        tasks = other_task_probes(self.other_task) if self.other_task else []
        return super()._units() + [
            [ScoredProbe(f"other_task-{number}", probe)] for number, probe in enumerate(tasks)
        ]


class PortabilityCallback(AspectEvaluation):
    """Measures what follows from the edits: aliases, reversed relations, hops, and their premises.

    For cases of several hops (MQuAKE) ``portability.multi_hop/passed`` stands beside
    ``passed_known`` and ``known``: the score of the cases whose other hops the model knew before
    editing, and their share. Arguments as for :class:`~lightning_edit.callbacks.EditEvaluation`.
    """

    aspects = ("portability", "premise")
