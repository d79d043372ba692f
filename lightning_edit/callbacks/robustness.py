"""Robustness callback: does an edit of a chat model still hold under another system message?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torchmetrics import SumMetric

from lightning_edit.callbacks.base import EvalContext, Measurement, MeasurementCallback
from lightning_edit.edits.request_rows import as_requests
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.types import EditRequest, Probe

#: None given, the most common one, and a long one of the kind that products use.
SYSTEMS: tuple[str | None, ...] = (
    None,
    "You are a helpful assistant.",
    "You are the assistant of a travel and culture magazine. Answer politely, in the language of "
    "the question, in one or two short sentences, and start with the answer itself. Do not use "
    "lists, headings or emoji, do not repeat the question, do not mention these instructions, and "
    "say so openly if you do not know something.",
)


class RobustnessCallback(MeasurementCallback):
    """Robustness to the system message: edits of a chat model asked again under other ones.

    ``robustness/answer@gen`` is the share of questions, edits times system messages, whose
    generated answer starts with the target; ``robustness.system<n>/answer@gen`` that of one message
    (numbered as given), ``robustness/n`` the number of edits. ``reliability/answer@gen`` has the
    same edits under the run's own system message, which is not asked again.

    Under ``EditTrainer`` the edits so far are asked; in other training ``requests``.

    Args:
        systems: System messages; ``None``: none is given, so that the template's own stands where
            it has one.
        requests: Facts that another training should teach.
        limit: Maximum number of edits to ask, the first ones; ``None``: all.
        batch_size: Rows per batch; no score depends on it.
        options: See :class:`~lightning_edit.callbacks.base.MeasurementCallback`.

    Raises:
        ConfigError: If no system message is given; when it measures, if the model is not asked
            through its chat template, or an editor acts at run time and answers by itself.
    """

    def __init__(
        self,
        systems: Sequence[str | None] = SYSTEMS,
        requests: Sequence[EditRequest | Mapping[str, Any]] = (),
        limit: int | None = 200,
        batch_size: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not systems:
            raise ConfigError(
                "RobustnessCallback got no system message; give some, or leave `systems` out"
            )
        self.systems = tuple(systems)
        self.requests = as_requests(requests, may_be_empty=True)
        self.limit = limit
        self.batch_size = batch_size

    def measure(self, context: EvalContext) -> Measurement:
        """Ask the edits under every system message but the run's own.

        Args:
            context: The model.
        """
        own = context.encoder
        if not own.form.chat:
            raise ConfigError(
                "RobustnessCallback asks under other system messages, but the model is asked in "
                "plain text; add --lm_chat true, or leave the callback out"
            )
        if context.responder is not None:
            raise ConfigError(
                "RobustnessCallback asks the model itself, but this editor acts at run time and "
                "answers in its place; leave the callback out"
            )
        requests = self.requests if context.ledger is None else context.requests
        asked = [_rewrite(request) for request in requests[: self.limit]]
        values: dict[str, float] = {}
        rows: list[dict[str, Any]] = []
        held_in_all = asked_in_all = 0.0
        for number, system in enumerate(self.systems):
            if system == own.form.system or not asked:
                continue
            form = replace(own.form, system=system)
            encoder = PromptEncoder(own.tokenizer, form, own.limits, own.two_stacks)
            scorer = Scorer(context.model, encoder, self.batch_size, ("gen",))
            # Sums, so that every process may ask any share of the edits.
            held, count = SumMetric().to(context.device), SumMetric().to(context.device)
            found = [score for _, score in context.map_sharded(asked, scorer.score)]
            held.update(float(sum(score.answer_gen or 0.0 for score in found)))
            count.update(float(len(found)))
            sum_held, sum_asked = float(held.compute()), float(count.compute())
            values[f"robustness.system{number}/answer@gen"] = sum_held / sum_asked
            held_in_all, asked_in_all = held_in_all + sum_held, asked_in_all + sum_asked
            rows += [_row(system, score) for score in found]
        if asked_in_all:
            values["robustness/answer@gen"] = held_in_all / asked_in_all
            values["robustness/n"] = float(len(asked))
        return Measurement(values, rows)


def _rewrite(request: EditRequest) -> ScoredProbe:
    """Return the edit itself as a question."""
    probe = Probe("rewrite", request.prompt, (request.target,), "target")
    return ScoredProbe(request.id, probe, separator=request.separator)


def _row(system: str | None, score: ProbeScore) -> dict[str, Any]:
    return {
        "edit_id": score.edit_id,
        "system": system,
        "prompt": score.prompt,
        "target": score.answers[0],
        "generated": score.generated,
        "held": bool(score.answer_gen),
    }
