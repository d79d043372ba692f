"""Editing-overfit callback (EVOKE): leakage of the edited answer into probes where it is wrong."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_edit.callbacks.base import EvalContext, Measurement, MeasurementCallback
from lightning_edit.datamodules.fact_checks import negated_prompt
from lightning_edit.edits.request_rows import as_requests
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.functional.leak import probability
from lightning_edit.functional.text import contains_answer, normalise
from lightning_edit.metrics import Leak, Overfitting
from lightning_edit.metrics.aspects import to_floats
from lightning_edit.types import EditRequest, Mode, Probe

#: Multi-hop probes: they need several facts, one of them the edited one.
_HOPS = ("one_hop", "multi_hop")


@dataclass(frozen=True)
class Question:
    """Overfitting probe: a question to which the edited answer is wrong.

    Args:
        edit_id: Id of the request.
        group: One of :data:`lightning_edit.metrics.overfitting.GROUPS`.
        prompt: Text the model continues.
        target: The edited answer.
        right: The correct answer; ``None`` if there is not one.
        old: The answer before the edit, if it differs.
    """

    edit_id: str
    group: str
    prompt: str
    target: str
    right: str | None = None
    old: str | None = None

    def scored_probe(self) -> ScoredProbe:
        """Return a probe for the scorer that lists every answer, the edited one first."""
        answers = tuple(dict.fromkeys(filter(None, (self.target, self.right, self.old))))
        return ScoredProbe(self.edit_id, Probe("known_fact", self.prompt, answers, "answer"))

    def leak(self, score: ProbeScore) -> Leak:
        """Compute the leak of the edited answer from a scorer's outcome.

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
        written = (
            None if score.generated is None else contains_answer(score.generated, (self.target,))
        )
        if target is None:
            return Leak(self.edit_id, self.group, generated=written)
        value, forced = probability(target.nll), bool(target.em)
        return Leak(self.edit_id, self.group, value, **named, forced=forced, generated=written)


def questions_of(request: EditRequest, multi_hop_suffix: str = "") -> Iterator[Question]:
    """Yield the overfitting probes of a request, to which the edited answer is wrong.

    * ``subject_specificity``: probes that name the subject and whose answer must not change;
    * ``prefix_distraction``: probes after a prefix that states the edit;
    * ``multi_hop``: multi-hop probes through the edited fact, with another answer;
    * ``negation``: the prompt with "not" at its end, where its last word takes one; the old answer
      is right there. This group is ours, after arXiv 2510.00625;
    * ``subject_only``: the subject alone, and "{subject} is". They have no correct answer: the
      change from the pristine model counts. This group is ours, not EVOKE's.

    Args:
        request: An edit with its probes.
        multi_hop_suffix: Text behind multi-hop questions.
    """
    target = request.target
    for probe in request.probes:
        group = _group(request, probe)
        # No leak is defined where the edited answer is correct, or part of it ("Kenya"/"Kenyan").
        accepted = {normalise(answer) for answer in probe.answers}
        if group is not None and not any(normalise(target) in answer for answer in accepted):
            old = probe.old if group == "multi_hop" else request.old_target
            same = old is not None and normalise(old) in {*accepted, normalise(target)}
            right = probe.answers[0]
            suffix = f" {multi_hop_suffix}" if group == "multi_hop" and multi_hop_suffix else ""
            prompt = f"{probe.prompt}{suffix}"
            yield Question(request.id, group, prompt, target, right, None if same else old)
    negated = negated_prompt(request.prompt)
    old = request.old_target
    if negated is not None and old is not None and normalise(old) != normalise(target):
        yield Question(request.id, "negation", negated, target, old)
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
    """Editing overfit: how often the edited answer leaks into probes where it is wrong.

    ``overfitting.<group>/<measure>@<mode>``, with the groups of :func:`questions_of` and the
    measures ``dp`` (probability of the edited answer), ``cap`` (of the correct one), ``oap`` (of
    the old one), ``eos`` (share with the correct answer more probable than the edited one), ``ams``
    (share with the correct or the edited answer more probable than the old one) and ``leak`` (share
    where the edited answer is the argmax, or occurs in the generated text). Definitions:
    ``docs/metrics.md``.

    Under ``EditTrainer`` the edits so far are scored; in other training ``requests``, or in
    ``validate`` and ``test`` those of the Trainer's data module of edits.

    Args:
        requests: Facts that another training should teach, with their probes.
        limit: Maximum number of requests to score, the first ones; ``None``: all.
        modes: ``tf``: teacher forcing. ``gen``: greedy generation.
        scored_together: Rows per batch.
        multi_hop_suffix: Text behind multi-hop questions; EVOKE's is "The answer to this question,
            most simply, is".
        options: See :class:`~lightning_edit.callbacks.base.MeasurementCallback`.

    Note:
        EOS and AMS are those of EVOKE's code (arXiv 2410.07819); ``leak`` is ours.
    """

    def __init__(
        self,
        requests: Sequence[EditRequest | Mapping[str, Any]] | Any = (),
        limit: int | None = 200,
        modes: Sequence[Mode] = ("tf", "gen"),
        scored_together: int = 64,
        multi_hop_suffix: str = "",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.requests = as_requests(requests, may_be_empty=True)
        self.limit = limit
        self.modes = tuple(modes)
        self.scored_together = scored_together
        self.multi_hop_suffix = multi_hop_suffix
        self.require(
            limit=(limit is None or limit >= 1, "1 or more, or None"),
            modes=(bool(modes) and set(modes) <= {"tf", "gen"}, "tf, gen or both"),
            scored_together=(scored_together >= 1, "1 or more"),
        )

    def measure(self, context: EvalContext) -> Measurement:
        """Score the overfitting probes.

        Args:
            context: The model.
        """
        given = self.requests if context.ledger is None else []
        requests = given or context.requests
        suffix = self.multi_hop_suffix
        units = [list(questions_of(request, suffix)) for request in requests[: self.limit]]
        scorer = Scorer(
            context.model,
            context.encoder,
            self.scored_together,
            self.modes,
            layout=context.layout,
            responder=context.responder,
        )

        def score_share(share: Sequence[list[Question]]) -> list[list[ProbeScore]]:
            return scorer.score_each([[q.scored_probe() for q in unit] for unit in share])

        leaks: list[Leak] = []
        rows: list[dict[str, Any]] = []
        for number, scores in context.map_sharded(units, score_share):
            for question, score in zip(units[number], scores, strict=True):
                leak = question.leak(score)
                leaks.append(leak)
                rows.append(_row(question, score, leak))
        metric = Overfitting().to(context.device)
        metric.update(leaks)
        values = {
            f"overfitting.{name}": value for name, value in to_floats(metric.compute()).items()
        }
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
