"""Probe outcomes: raw results, measures, comparison with the pristine model, JSON rows.

Nothing here imports torch, so results can be read and re-scored without it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_edit.evaluation.answer_score import AnswerScore
from lightning_edit.functional.measures import agreement, probability_margin
from lightning_edit.functional.text import (
    answers_match,
    contains_answer,
    normalise,
    same_answer,
    starts_with_answer,
)
from lightning_edit.types import ASPECT_OF_KIND, EditRequest, Expect, Group, Probe

__all__ = ["AnswerScore", "ProbeScore", "ScoredProbe", "compare", "probes_of"]


@dataclass(frozen=True)
class ScoredProbe:
    """Probe with its request id and contrast answer, ready to be scored.

    Args:
        edit_id: Id of the request that the probe tests.
        probe: The probe.
        contrast: The answer that should be less probable: the old target where the new one is
            expected, the new target where nothing may change. ``None`` if there is none.
        case: Case of the request, see :class:`~lightning_edit.types.EditRequest`.
        separator: Text between prompt and answer; ``None``: by rule.
    """

    edit_id: str
    probe: Probe
    contrast: str | None = None
    case: str | None = None
    separator: str | None = None


def probes_of(request: EditRequest) -> list[ScoredProbe]:
    """List a request's probes, each with the contrast answer that should be less probable.

    As in COUNTERFACT, only requests with an old target have a contrast.
    """
    wrong: dict[str, str | None] = {"target": request.old_target, "answer": None}
    wrong["unchanged"] = request.target if request.old_target is not None else None
    listed = []
    for probe in request.all_probes():
        contrast = probe.old or wrong[probe.expect]
        right = {normalise(answer) for answer in probe.answers}
        same = contrast is not None and normalise(contrast) in right
        kept = None if same else contrast
        listed.append(ScoredProbe(request.id, probe, kept, request.case, request.separator))
    return listed


@dataclass(frozen=True)
class ProbeScore:
    """Outcome of one probe: raw results from which every measure is computed.

    A measure is ``None`` if it does not apply: its mode was not run, there is no contrast, or no
    pristine model to compare with. Definitions: ``docs/metrics.md``.

    Args:
        edit_id: Id of the request that the probe tests.
        kind: The probe's kind.
        prompt: Its prompt.
        answers: Accepted answers, the preferred one first.
        expect: Expected behaviour of the edited model, see :class:`~lightning_edit.types.Probe`.
        forced: One teacher-forced score per answer; empty if that mode was not run.
        contrast: Score of the answer that should be less probable.
        generated: Greedy continuation up to its natural stop; ``None`` if that mode was not run.
        judged: Verdict on the generated text, 0 to 1, of a judge that was asked, see
            :mod:`~lightning_edit.evaluation.judges`; ``None`` if none was.
        pristine: The same probe on the pristine model, see :func:`compare`.
        case: Case of the request; ``None`` if the request is a case of its own.
        group: The multi-question test that the probe is part of.
    """

    edit_id: str
    kind: str
    prompt: str
    answers: tuple[str, ...]
    expect: Expect
    forced: tuple[AnswerScore, ...] = ()
    contrast: AnswerScore | None = None
    generated: str | None = None
    pristine: "ProbeScore | None" = None
    case: str | None = None
    group: Group | None = None
    judged: float | None = None

    @property
    def aspect(self) -> str:
        """Aspect that this probe counts towards, such as ``locality``."""
        return ASPECT_OF_KIND[self.kind]

    @property
    def key(self) -> tuple[str, ...]:
        """Lookup key: prompt and answers, the same for every edit that has this probe."""
        return (self.prompt, *self.answers)

    @property
    def token_acc(self) -> float | None:
        """Token accuracy: share of answer tokens that are the argmax; the best of the answers."""
        return max((answer.token_acc for answer in self.forced), default=None)

    @property
    def em(self) -> float | None:
        """Exact match: 1.0 if every token of one of the answers is the argmax, else 0.0."""
        return max((answer.em for answer in self.forced), default=None)

    @property
    def nll(self) -> float | None:
        """Mean negative log-probability per token of the preferred answer, in nats."""
        return self.forced[0].nll if self.forced else None

    @property
    def margin(self) -> float | None:
        """Margin: probability of the preferred answer minus the contrast's, length-normalised."""
        if not self.forced or self.contrast is None:
            return None
        return probability_margin(self.forced[0].nll, self.contrast.nll)

    @property
    def margin_sign(self) -> float | None:
        """Sign of the margin: 1.0 if the preferred answer beats the contrast, else 0.0."""
        if not self.forced or self.contrast is None:
            return None
        return float(self.contrast.nll > self.forced[0].nll)

    @property
    def answer_gen(self) -> float | None:
        """Answer first: 1.0 if the generated text starts with one of the answers, else 0.0."""
        return self._match(starts_with_answer)

    @property
    def em_gen(self) -> float | None:
        """Exact match: 1.0 if the generated text is one of the answers and nothing else."""
        return self._match(answers_match)

    @property
    def contains_gen(self) -> float | None:
        """Containment: 1.0 if one of the answers stands anywhere in the generated text."""
        return self._match(contains_answer)

    @property
    def right_gen(self) -> float | None:
        """Verdict on the generated text: 1.0 if it is right, else 0.0.

        By the judge that was asked (a half or more is right), else by :attr:`answer_gen`.
        """
        return self.answer_gen if self.judged is None else float(self.judged >= 0.5)

    def _match(self, rule: Callable[[str, Sequence[str]], bool]) -> float | None:
        return None if self.generated is None else float(rule(self.generated, self.answers))

    @property
    def kept(self) -> float | None:
        """Agreement with the pristine model: share of equal argmax tokens, preferred answer.

        0 where the edited model's outputs are not finite; ``None`` where the pristine model's are,
        which leave nothing to keep.
        """
        if self.pristine is None or not self.forced or not self.pristine.forced:
            return None
        if self.pristine._is_broken:
            return None
        if self._is_broken:
            return 0.0
        return agreement(self.forced[0].argmax_ids, self.pristine.forced[0].argmax_ids)

    @property
    def kept_gen(self) -> float | None:
        """Agreement of generated answers: 1.0 if both texts give the same one, else 0.0.

        As :attr:`kept` where outputs are not finite, which answers that were teacher-forced tell.
        """
        if self.pristine is None or self.generated is None or self.pristine.generated is None:
            return None
        if self.pristine._is_broken:
            return None
        if self._is_broken:
            return 0.0
        return float(same_answer(self.generated, self.pristine.generated, self.answers))

    @property
    def _is_broken(self) -> bool:
        """Whether the preferred answer's score says that the model's outputs are no numbers."""
        return bool(self.forced) and self.forced[0].is_broken

    def measures(self) -> dict[str, float]:
        """Return the measures of this probe, by ``<measure>@<mode>``.

        ``kept`` is included only for probes that must not change.
        """
        values = {
            "token_acc@tf": self.token_acc,
            "em@tf": self.em,
            "nll@tf": self.nll,
            "margin@tf": self.margin,
            "margin_sign@tf": self.margin_sign,
            "answer@gen": self.answer_gen,
            "em@gen": self.em_gen,
            "contains@gen": self.contains_gen,
            "judge@gen": self.judged,
        }
        if self.expect == "unchanged":
            values |= {"kept@tf": self.kept, "kept@gen": self.kept_gen}
        return {name: value for name, value in values.items() if value is not None}

    def to_row(self) -> dict[str, Any]:
        """Serialise raw results and measures to one row of ``cases.jsonl``."""
        row: dict[str, Any] = {
            "edit_id": self.edit_id,
            "aspect": self.aspect,
            "kind": self.kind,
            "prompt": self.prompt,
            "answers": list(self.answers),
            "expect": self.expect,
            "generated": self.generated,
            "measures": self.measures(),
            "forced": [answer.to_row() for answer in self.forced],
            "contrast": None if self.contrast is None else self.contrast.to_row(),
        }
        if self.judged is not None:
            row["judged"] = self.judged
        if self.case is not None:
            row["case"] = self.case
        if self.group is not None:
            row["group"] = asdict(self.group)
        if self.pristine is not None:
            before = self.pristine.to_row()
            row["pristine"] = {name: before[name] for name in _PRISTINE_FIELDS if name in before}
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ProbeScore":
        """Deserialise a row of :meth:`to_row`; measures are recomputed from the raw results."""
        contrast = row.get("contrast")
        pristine = row.get("pristine")
        group = row.get("group")
        return cls(
            edit_id=row["edit_id"],
            kind=row["kind"],
            prompt=row["prompt"],
            answers=tuple(row["answers"]),
            expect=row["expect"],
            forced=tuple(AnswerScore.from_row(answer) for answer in row["forced"]),
            contrast=None if contrast is None else AnswerScore.from_row(contrast),
            generated=row["generated"],
            pristine=None
            if pristine is None
            else cls.from_row({**row, "pristine": None, "judged": None} | pristine),
            case=row.get("case"),
            group=None if group is None else Group.from_dict(group),
            judged=row.get("judged"),
        )


#: Fields that a row stores of the pristine outcome; the others are the same.
_PRISTINE_FIELDS = ("generated", "judged", "measures", "forced", "contrast")


def compare(post: ProbeScore, pre: ProbeScore) -> ProbeScore:
    """Attach the pristine model's outcome to the edited model's outcome of the same probe.

    Args:
        post: Outcome after editing.
        pre: Outcome of the same probe on the pristine model, perhaps scored for another edit.

    Returns:
        ``post`` with ``pristine`` filled in, so that ``kept`` and ``kept_gen`` are defined.

    Raises:
        ValueError: If prompt or answers differ.
    """
    if post.key != pre.key:
        raise ValueError(
            f"{post.prompt!r} with answers {post.answers} cannot be compared with {pre.prompt!r} "
            f"and {pre.answers}; compare outcomes of one question"
        )
    # The contrast belongs to the edit, not to the probe: another edit's does not apply here.
    contrast = pre.contrast if pre.edit_id == post.edit_id else None
    pristine = replace(
        pre,
        edit_id=post.edit_id,
        kind=post.kind,
        expect=post.expect,
        contrast=contrast,
        pristine=None,
        case=post.case,
        group=post.group,
    )
    return replace(post, pristine=pristine)
