"""Fact evaluation callback for any Lightning Trainer: accuracy, locality and drift of facts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl

from lightning_edit.callbacks.base import EvalContext, Measurement, MeasurementCallback, gather
from lightning_edit.callbacks.context import MeasurementDriver
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.edits.request_rows import as_requests
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.judges import JudgeLike, find_judge, judged
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError
from lightning_edit.metrics import AspectScores, CriterionScores, summarise
from lightning_edit.metrics.aspects import compute_all
from lightning_edit.types import EditRequest, Mode, Probe, cases_of

#: Aspects that training should not change, and the measures whose change is reported.
_DRIFTING = ("locality", "known")
_DRIFT = ("em@tf", "judge@gen", "answer@gen", "em@gen", "nll@tf")


class EditEvaluation(MeasurementCallback):
    """Evaluation of facts during training or editing: facts to learn, and facts to keep.

    Works in any project: it finds the Hugging Face model inside the LightningModule, scores the
    probes on it before the first step, and again at every validation or every few steps. Model
    modes, gradients and random state stay unchanged. Metric names are those of the library
    (``locality/kept@tf``, ``known/answer@gen``, …); ``drift.known/em@tf`` is the change since
    before the first step. Values go to every logger and, for checkpoints and early stopping, to
    ``trainer.callback_metrics``. With several processes each scores its share of the requests.

    Without requests, probes and data it scores those of the Trainer's own data module, if that is
    one of edits: ``Trainer(callbacks=[EditEvaluation()]).test(editor, datamodule)`` scores the
    language model that an editor is bound to on the test split. The first outcome of a question is
    its baseline, so evaluating before and after an edit shows what the edit changed.

    Args:
        requests: Facts that the training should teach, with their probes; dictionaries need
            ``prompt`` and ``target``.
        probes: Further probes, such as ``{"kind": "known_fact", "prompt": "The capital of Italy
            is", "answers": "Rome"}``; kinds as in :class:`~lightning_edit.types.Probe`.
        data: A data module of edits, or a JSONL file of facts, whose requests are used as well.
        tokenizer: The model's tokenizer or its folder; by default the attribute ``tokenizer`` of
            the LightningModule or its data module.
        model_attribute: Dotted name of the language model in the LightningModule; only needed
            where it holds several.
        every_n_steps: Evaluate every this many optimizer steps; ``None``: never.
        on_validation: Evaluate at the end of every validation.
        modes: ``tf``: teacher forcing. ``gen``: greedy generation.
        batch_size: Rows per batch; no score depends on it.
        max_new_tokens: Maximum number of tokens to generate, see
            :class:`~lightning_edit.evaluation.scorer.Scorer`.
        directory: Folder for one ``step-<n>.jsonl`` per evaluation, one line per probe.
        prefix: Prefix of every metric name, e.g. ``"facts/"``; separates several such callbacks.
        judge: What decides whether a generated text is right: ``answer_first``, ``exact``, or a
            function of prompt, generated text and accepted answers that returns a truth value or a
            number from 0 to 1, such as one that asks another language model. Its verdicts are
            the measure ``judge@gen``.

    Raises:
        ConfigError: If a request or probe is not valid; at the start of a run if there are none.

    Example:
        >>> facts = [{"kind": "known_fact", "prompt": "The capital of Italy is", "answers": "Rome"}]
        >>> callback = EditEvaluation(probes=facts, every_n_steps=100)
        >>> # Trainer(callbacks=[callback]).fit(your_module, your_data)
    """

    def __init__(
        self,
        requests: Sequence[EditRequest | Mapping[str, Any]] | Any = (),
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
        judge: JudgeLike = "answer_first",
    ) -> None:
        super().__init__(
            tokenizer, model_attribute, every_n_steps, on_validation, directory, prefix
        )
        self.requests = as_requests(requests, may_be_empty=True)
        self.probes = [_as_probe(probe) for probe in probes]
        self.data = data
        self.modes = tuple(modes)
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.judge = find_judge(judge)
        self.baseline: Baseline | None = None
        tokens = max_new_tokens
        self.require(
            modes=(bool(modes) and set(modes) <= {"tf", "gen"}, "tf, gen or both"),
            batch_size=(batch_size >= 1, "1 or more"),
            max_new_tokens=(tokens is None or tokens >= 1, "1 or more, or None"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state with the baseline outcomes, for a resumed run."""
        rows = None if self.baseline is None else self.baseline.to_rows()
        return super().state_dict() | {"baseline": rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the checkpoint state that :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers.
        """
        super().load_state_dict(state_dict)
        rows = state_dict["baseline"]
        self.baseline = None if rows is None else Baseline.from_rows(rows)

    def reset(self) -> None:
        """Reset the state before a new run."""
        super().reset()
        self.baseline = None

    def measure(self, context: EvalContext) -> Measurement:
        """Score every probe; the first call's outcomes become the baseline of later calls.

        Args:
            context: The model.
        """
        edited = context.ledger is not None
        others = () if edited or self.asks_own_questions else context.requests
        units = self._probe_groups(others)
        if not units and not edited:
            raise ConfigError(self._nothing_to_ask())
        if not units:
            # The session scores the probes of its edits; they are the baseline of a later test.
            self.baseline = self.baseline or Baseline(context.scores)
            return Measurement({})
        scores = self._score(context, units)
        earlier = () if self.baseline is None else self.baseline.scores
        known = {(score.edit_id, score.prompt) for score in earlier}
        asked = {(item.edit_id, item.probe.prompt) for unit in units for item in unit}
        if self.baseline is None or not asked <= known:
            found = gather_scores(scores)
            added = [score for score in found if (score.edit_id, score.prompt) not in known]
            self.baseline = Baseline([*earlier, *added])
            values = summarise(found)
        else:
            scores = self.baseline.compare(scores)
            metrics = [metric().to(context.device) for metric in (AspectScores, CriterionScores)]
            values = compute_all(metrics, scores)
            before = summarise([s for s in earlier if (s.edit_id, s.prompt) in asked])
            values |= {
                f"drift.{aspect}/{measure}": values[name] - before[name]
                for aspect in _DRIFTING
                for measure in _DRIFT
                if (name := f"{aspect}/{measure}") in values and name in before
            }
        return Measurement(values, [score.to_row() for score in scores])

    @property
    def asks_own_questions(self) -> bool:
        """Whether the callback was given questions; else it takes those of the data module."""
        return bool(self.requests or self.probes or self.data is not None)

    def _nothing_to_ask(self) -> str:
        return (
            f"{type(self).__name__} has nothing to ask: give it `requests`, `probes` or `data`, or "
            "give `validate` or `test` a data module of edits"
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the baseline before the first step.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that is trained.

        Raises:
            ConfigError: If there is nothing to ask, or no language model to ask.
        """
        if not isinstance(pl_module, MeasurementDriver) and not self._probe_groups(()):
            raise ConfigError(self._nothing_to_ask())
        super().on_fit_start(trainer, pl_module)

    def _score(self, context: EvalContext, units: Sequence[list[ScoredProbe]]) -> list[ProbeScore]:
        """Score this rank's share of whole cases, since each case is averaged on one rank."""
        scorer = Scorer(
            context.model,
            context.encoder,
            self.batch_size,
            self.modes,
            self.max_new_tokens,
            self.layout or context.layout,
            context.responder,
        )
        if self.baseline is None and self.layout is not None:
            # Every process guesses from all probes, so that all make the same guess.
            after = scorer.guess_after_answer([probe for unit in units for probe in unit])
            self.layout = scorer.layout = replace(self.layout, after_answer=after)
        found = context.map_sharded(units, scorer.score_each)
        return judged([score for _, scores in found for score in scores], self.judge)

    def _probe_groups(self, further: Sequence[EditRequest]) -> list[list[ScoredProbe]]:
        """Return the probes of this callback and of further requests, grouped by case."""
        cases = cases_of([*self.requests, *self._data_requests(), *further])
        units = [[probe for request in case for probe in probes_of(request)] for case in cases]
        return units + [
            [ScoredProbe(f"{probe.kind}-{number}", probe)]
            for number, probe in enumerate(self.probes)
        ]

    def _data_requests(self) -> list[EditRequest]:
        if self.data is None:
            return []
        if isinstance(self.data, str):
            from lightning_edit.datamodules import JSONLDataModule  # imported only when needed

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
    """All-gather probe outcomes over processes.

    Args:
        scores: This process's outcomes.
    """
    return [ProbeScore.from_row(row) for row in gather([score.to_row() for score in scores])]
