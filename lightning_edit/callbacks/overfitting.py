"""Whether an edited answer also comes where it is wrong: editing overfit, as EVOKE measures it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_edit.callbacks.base import EvalContext, Measurement, MeasurementCallback
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.functional.leak import mentions, probability
from lightning_edit.functional.text import normalise
from lightning_edit.metrics import Leak, Overfitting
from lightning_edit.metrics.aspects import plain
from lightning_edit.types import EditRequest, Mode, Probe
from lightning_edit.types.requests import as_requests

#: Questions that need several facts, one of them the edited one.
_HOPS = ("one_hop", "multi_hop")


@dataclass(frozen=True)
class Question:
    """A question in which the edited answer is wrong.

    Args:
        edit_id: Id of the request.
        group: One of :data:`lightning_edit.metrics.overfitting.GROUPS`.
        prompt: Text the model continues.
        target: The edited answer.
        right: The right answer; ``None`` where there is not one.
        old: The answer before the edit, where it is another one.
    """

    edit_id: str
    group: str
    prompt: str
    target: str
    right: str | None = None
    old: str | None = None

    def scored_probe(self) -> ScoredProbe:
        """Return it for a scorer, every answer listed; the edited one is the first."""
        answers = tuple(dict.fromkeys(filter(None, (self.target, self.right, self.old))))
        return ScoredProbe(self.edit_id, Probe("known_fact", self.prompt, answers, "answer"))

    def leak(self, score: ProbeScore) -> Leak:
        """Read a scorer's outcome.

        Args:
            score: Outcome of :meth:`scored_probe`.
        """
        of_text = {answer.text: answer for answer in score.forced}
        target = of_text.get(self.target)
        named = {
            name: probability(of_text[text].nll)
            for name, text in (("right", self.right), ("old", self.old))
            if text in of_text
        }
        written = None if score.generated is None else mentions(score.generated, (self.target,))
        if target is None:
            return Leak(self.edit_id, self.group, generated=written)
        value, forced = probability(target.nll), bool(target.em)
        return Leak(self.edit_id, self.group, value, **named, forced=forced, generated=written)


def questions_of(request: EditRequest) -> Iterator[Question]:
    """Yield the questions about a request in which the edited answer is wrong.

    * ``subject_specificity``: probes that name the subject and whose answer must not change;
    * ``prefix_distraction``: probes behind a text that states the edit;
    * ``multi_hop``: probes behind the edited fact with an answer of their own;
    * ``subject_only``: the subject alone, and "{subject} is". They have no right answer: what
      counts is the change from the pristine model. This group is ours, not EVOKE's.

    Args:
        request: An edit with its probes.
    """
    target = request.target
    for probe in request.probes:
        group = _group(request, probe)
        # Where the edited answer is right, or part of what is ("Kenya" of "Kenyan"), none can leak.
        accepted = {normalise(answer) for answer in probe.answers}
        if group is not None and not any(normalise(target) in answer for answer in accepted):
            old = probe.old if group == "multi_hop" else request.old_target
            same = old is not None and normalise(old) in {*accepted, normalise(target)}
            right = probe.answers[0]
            yield Question(request.id, group, probe.prompt, target, right, None if same else old)
    if request.subject is not None:
        for prompt in (request.subject, f"{request.subject} is"):
            yield Question(request.id, "subject_only", prompt, target)


def _group(request: EditRequest, probe: Probe) -> str | None:
    if probe.kind == "distracting_neighbor":
        return "prefix_distraction"
    if probe.kind in _HOPS:
        return "multi_hop"
    about = request.subject is not None and request.subject in probe.prompt
    return "subject_specificity" if about and probe.expect == "unchanged" else None


class OverfittingCallback(MeasurementCallback):
    """Measures how much the edited answer leaks into questions where it is wrong.

    ``overfitting.<group>/<measure>@<mode>``, with the groups of :func:`questions_of` and the
    measures ``dp`` (probability of the edited answer), ``cap`` (of the right one), ``oap`` (of the
    old one), ``eos`` (share with the right answer more probable than the edited one), ``ams``
    (share with the right or the edited answer more probable than the old one) and ``leak`` (share
    where the edited answer is the first choice, or stands in the generated text).
    Definitions: ``docs/metrics.md``.

    In our loop the edits so far are asked; in other trainings ``requests``.

    Args:
        requests: Facts that another training is to teach, with their probes.
        limit: Most requests that are asked, the first ones; ``None``: all.
        modes: ``tf`` teacher forced, ``gen`` generated.
        scored_together: Rows that go through the model together.
        options: As for :class:`~lightning_edit.callbacks.base.MeasurementCallback`.

    Note:
        The card of EVOKE (arXiv 2410.07819) that this follows reconstructs EOS and AMS; ``leak`` is
        ours.
    """

    def __init__(
        self,
        requests: Sequence[EditRequest | Mapping[str, Any]] = (),
        limit: int | None = 200,
        modes: Sequence[Mode] = ("tf", "gen"),
        scored_together: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.requests = as_requests(list(requests))
        self.limit = limit
        self.modes = tuple(modes)
        self.scored_together = scored_together

    def measure(self, context: EvalContext) -> Measurement:
        """Ask the questions.

        Args:
            context: The model.
        """
        requests = self.requests if context.ledger is None else context.requests
        units = [list(questions_of(request)) for request in requests[: self.limit]]
        scorer = Scorer(
            context.model,
            context.tokenizer,
            self.scored_together,
            self.modes,
            layout=context.layout,
        )

        def ask(share: Sequence[list[Question]]) -> list[list[ProbeScore]]:
            return scorer.score_each([[q.scored_probe() for q in unit] for unit in share])

        leaks: list[Leak] = []
        rows: list[dict[str, Any]] = []
        for number, scores in context.map_sharded(units, ask):
            for question, score in zip(units[number], scores, strict=True):
                leak = question.leak(score)
                leaks.append(leak)
                rows.append(_row(question, score, leak))
        metric = Overfitting().to(context.device)
        metric.update(leaks)
        values = {f"overfitting.{name}": value for name, value in plain(metric.compute()).items()}
        return Measurement(values, rows)


def _row(question: Question, score: ProbeScore, leak: Leak) -> dict[str, Any]:
    return {
        "edit_id": question.edit_id,
        "group": question.group,
        "prompt": question.prompt,
        "target": question.target,
        "right": question.right,
        "old": question.old,
        "generated": score.generated,
        "measures": {name: round(value, 6) for name, value in leak.measures().items()},
    }
