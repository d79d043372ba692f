"""What training or editing does to facts: a callback for anyone's Trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from lightning_edit.callbacks.base import EvalContext, Measurement, MeasurementCallback, gather
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError
from lightning_edit.metrics import AspectScores, CriterionScores, summarise
from lightning_edit.metrics.aspects import computed
from lightning_edit.types import EditRequest, Mode, Probe, cases_of
from lightning_edit.types.requests import as_requests

#: Aspects that training is not meant to change, and the measures whose change is reported.
_DRIFTING = ("locality", "known")
_DRIFT = ("em@tf", "em@gen", "nll@tf")


class EditEvaluation(MeasurementCallback):
    """Measures what training does to given facts, and to facts nobody asked to change.

    Works in any project: it finds the Hugging Face model inside the LightningModule, scores the
    probes on it before the first step, and again at every validation or every few steps. Model
    modes, gradients and random numbers are left as they are. Names are those of the library
    (``locality/kept@tf``, ``known/em@gen``, …); ``drift.known/em@tf`` is the change since before
    the first step. Values go to every logger and, for checkpoints and early stopping to watch, to
    ``trainer.callback_metrics``. Under several processes each scores its share of the requests.

    Args:
        requests: Facts that the training is to teach, with their probes; dictionaries need
            ``prompt`` and ``target``.
        probes: Questions beside them, such as ``{"kind": "known_fact", "prompt": "The capital of
            Italy is", "answers": "Rome"}``; kinds as in :class:`~lightning_edit.types.Probe`.
        data: A data module of edits, or a JSONL file of facts, whose requests are used as well.
        tokenizer: The model's tokenizer or its folder; by default the attribute ``tokenizer`` of
            the LightningModule or its data module.
        model_attribute: Dotted name of the language model in the LightningModule; only needed
            where it holds several.
        every_n_steps: Evaluate each time that many optimiser steps have passed; ``None``: never.
        on_validation: Evaluate at the end of every validation.
        modes: ``tf`` teacher forced, ``gen`` generated.
        batch_size: Rows scored together; no score depends on it.
        max_new_tokens: Most tokens to generate, see
            :class:`~lightning_edit.evaluation.scorer.Scorer`.
        directory: Folder for one ``step-<n>.jsonl`` an evaluation, one line a probe.
        prefix: Put before every name, e.g. ``"facts/"``; tells several of these callbacks apart.

    Raises:
        ConfigError: If there is nothing to ask.

    Example:
        >>> facts = [{"kind": "known_fact", "prompt": "The capital of Italy is", "answers": "Rome"}]
        >>> callback = EditEvaluation(probes=facts, every_n_steps=100)
        >>> # Trainer(callbacks=[callback]).fit(your_module, your_data)
    """

    needs_questions: ClassVar[bool] = True
    """Whether there must be something to ask besides what the session asks itself."""

    def __init__(
        self,
        requests: Sequence[EditRequest | Mapping[str, Any]] = (),
        probes: Sequence[Probe | Mapping[str, Any]] = (),
        data: EditDataModule | str | None = None,
        tokenizer: Any = None,
        model_attribute: str | None = None,
        every_n_steps: int | None = None,
        on_validation: bool = True,
        modes: Sequence[Mode] = ("tf", "gen"),
        batch_size: int = 64,
        max_new_tokens: int | None = None,
        directory: str | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(
            tokenizer, model_attribute, every_n_steps, on_validation, directory, prefix
        )
        if self.needs_questions and not requests and not probes and data is None:
            raise ConfigError(
                f"{type(self).__name__} has nothing to ask; give `requests`, `probes` or `data`"
            )
        self.requests = as_requests(list(requests))
        self.probes = [_as_probe(probe) for probe in probes]
        self.data = data
        self.modes = tuple(modes)
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.baseline: Baseline | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the outcomes before the first step, so that a resumed run compares with them."""
        rows = None if self.baseline is None else self.baseline.to_rows()
        return super().state_dict() | {"baseline": rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers.
        """
        super().load_state_dict(state_dict)
        rows = state_dict["baseline"]
        self.baseline = None if rows is None else Baseline.from_rows(rows)

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self.baseline = None

    def measure(self, context: EvalContext) -> Measurement:
        """Score every probe; the first time the outcomes become what later ones compare with.

        Args:
            context: The model.
        """
        scores = self._score(context)
        if self.baseline is None:
            self.baseline = Baseline(gather_scores(scores))
            values = summarise(self.baseline.scores)
        else:
            scores = self.baseline.compare(scores)
            metrics = [metric().to(context.device) for metric in (AspectScores, CriterionScores)]
            values = computed(metrics, scores)
            before = summarise(self.baseline.scores)
            values |= {
                f"drift.{aspect}/{measure}": values[name] - before[name]
                for aspect in _DRIFTING
                for measure in _DRIFT
                if (name := f"{aspect}/{measure}") in values and name in before
            }
        return Measurement(values, [score.to_row() for score in scores])

    def _score(self, context: EvalContext) -> list[ProbeScore]:
        """Score this process's share: whole cases, since each is averaged in one place."""
        scorer = Scorer(
            context.model,
            context.tokenizer,
            self.batch_size,
            self.modes,
            self.max_new_tokens,
            self.layout or context.layout,
        )
        units = self._units()
        if self.baseline is None and self.layout is not None:
            # Every process guesses from all questions, so all of them guess the same.
            after = scorer.guess_after_answer([probe for unit in units for probe in unit])
            self.layout = scorer.layout = replace(self.layout, after_answer=after)
        found = context.map_sharded(units, scorer.score_each)
        return [score for _, scores in found for score in scores]

    def _units(self) -> list[list[ScoredProbe]]:
        """Return the probes, those of one case together."""
        cases = cases_of([*self.requests, *self._data_requests()])
        units = [[probe for request in case for probe in probes_of(request)] for case in cases]
        return units + [
            [ScoredProbe(f"{probe.kind}-{number}", probe)]
            for number, probe in enumerate(self.probes)
        ]

    def _data_requests(self) -> list[EditRequest]:
        if self.data is None:
            return []
        if isinstance(self.data, str):
            from lightning_edit.datamodules import JSONLDataModule  # reads files only when asked to

            self.data = JSONLDataModule(self.data)
        self.data.setup("edit")
        return self.data.edit_requests()


def _as_probe(probe: Probe | Mapping[str, Any]) -> Probe:
    if isinstance(probe, Probe):
        return probe
    missing = {"kind", "prompt", "answers"} - probe.keys()
    if missing:
        raise ConfigError(
            f"the probe {dict(probe)} lacks {', '.join(sorted(missing))}; "
            "give every probe `kind`, `prompt` and `answers`"
        )
    return Probe.of(probe["kind"], probe["prompt"], probe["answers"])


def gather_scores(scores: Sequence[ProbeScore]) -> list[ProbeScore]:
    """Return the outcomes of all processes to each of them.

    Args:
        scores: This process's.
    """
    return [ProbeScore.from_row(row) for row in gather([score.to_row() for score in scores])]
