"""Detection of facts that a language model does not know: contrastive knowledge assessment (CKA).

Dong et al., Calibrating Factual Knowledge in Pretrained Language Models, EMNLP 2022, section 2: the
probability of a fact's object after its prompt is compared with that after prompts of the same
subject with other relations. The wrong relations are those of other facts in the same data.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from lightning_edit.exceptions import DataError
from lightning_edit.functional.contrastive import contrastive_score
from lightning_edit.functional.measures import NLL_CAP
from lightning_edit.functional.text import normalise
from lightning_edit.inference.responder import Responder, Statement
from lightning_edit.types import EditRequest

#: Below this a fact is not known: no threshold is in the authors' code, this one is the natural.
THRESHOLD = 1.0

Object = Literal["target", "old_target"]


@dataclass(frozen=True)
class ContrastedFact:
    """A fact with prompts of wrong relations.

    Args:
        id: Id of the request.
        prompt: Prompt of the true relation.
        answer: The object.
        wrong: Prompts of the same subject with wrong relations.
        separator: Text between prompt and answer; ``None``: by rule.
    """

    id: str
    prompt: str
    answer: str
    wrong: tuple[str, ...]
    separator: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a model says of a fact.

    Args:
        id: Id of the request.
        prompt: Prompt of the true relation.
        answer: The object.
        true: Its probability after this prompt.
        wrong: Its probabilities after prompts with wrong relations, by prompt.
        score: CKA, or infinity where it is probable after no wrong relation; ``None`` where outputs
            of the model are not finite, so that there is no verdict.
    """

    id: str
    prompt: str
    answer: str
    true: float
    wrong: Mapping[str, float]
    score: float | None

    @property
    def is_known(self) -> bool | None:
        """Whether the object is more probable after the true relation; ``None``: no verdict."""
        return None if self.score is None else self.score >= THRESHOLD

    def to_row(self) -> dict[str, Any]:
        """Return plain values, for JSON; an infinite score is ``None``, and one that is none."""
        row = asdict(self) | {"known": self.is_known}
        finite = self.score is not None and math.isfinite(self.score)
        return row | {"score": self.score if finite else None}


def contrasted(
    requests: Sequence[EditRequest],
    relations: Sequence[str | None] | None = None,
    count: int = 3,
    answer: Object = "target",
    seed: int = 0,
) -> tuple[list[ContrastedFact], dict[str, str]]:
    """Pair facts with prompts of wrong relations, made from the prompts of other facts.

    Where relations are named (in the records, or as triples), a prompt of another relation is
    wrong. Elsewhere it is a prompt of another wording that shares no answer with those of the
    fact's own wording, since two wordings with one answer may be of one relation.

    Args:
        requests: The facts, with subjects.
        relations: Name of each one's relation, if known.
        count: Wrong relations per fact (3 in the paper).
        answer: The object: the request's new answer, or its old one.
        seed: Seed of the choice.

    Returns:
        The facts that could be paired, and by id why others could not.

    Raises:
        ValueError: If ``count`` is below one.
    """
    if count < 1:
        raise ValueError(f"a fact is contrasted with 1 wrong relation or more, got {count}")
    given = [None] * len(requests) if relations is None else list(relations)
    named = [
        name or (request.triple[1] if request.triple is not None else None)
        for name, request in zip(given, requests, strict=True)
    ]
    wordings = _wordings(requests, named)
    found: list[ContrastedFact] = []
    impossible: dict[str, str] = {}
    for request, relation in zip(requests, named, strict=True):
        template, said = _template(request), getattr(request, answer)
        if template is None or request.subject is None:
            impossible[request.id] = "names no subject"
            continue
        if not said:
            impossible[request.id] = f"has no {answer}"
            continue
        others = _other_relations(wordings, template, relation)
        if len(others) < count:
            impossible[request.id] = (
                f"has {len(others)} other relations in this data to be contrasted with, of {count}"
            )
            continue
        draw = random.Random(f"{seed}/{request.id}")
        chosen = [draw.choice(texts) for texts in draw.sample(others, count)]
        wrong = tuple(request.subject.join(around) for around in chosen)
        found.append(ContrastedFact(request.id, request.prompt, said, wrong, request.separator))
    return found, impossible


def detect(
    responder: Responder,
    facts: Sequence[ContrastedFact],
    smoothing: float = 0.0,
    whole_answer: bool = False,
) -> list[Verdict]:
    """Score facts by CKA.

    Args:
        responder: The model to ask.
        facts: The facts.
        smoothing: Constant that is added to both probabilities (0 in the paper).
        whole_answer: Probability of the whole answer instead of its first token, which is the
            authors' and cannot tell objects with one beginning apart.

    Raises:
        DataError: If there is no fact.
    """
    if not facts:
        raise DataError(
            "no fact can be contrasted with wrong relations; give facts of several relations, each "
            "with a `subject`"
        )
    statements = [
        Statement(prompt, fact.answer, fact.separator)
        for fact in facts
        for prompt in (fact.prompt, *fact.wrong)
    ]
    scores = responder.loglikelihood(statements)
    each = iter([score.nlls if whole_answer else score.nlls[:1] for score in scores])
    verdicts = []
    for fact in facts:
        tokens = [next(each) for _ in (fact.prompt, *fact.wrong)]
        nlls = torch.tensor([math.fsum(one) for one in tokens], dtype=torch.float64)
        # The ratio is that of scaled probabilities too: those of a long answer underflow.
        compared = (-nlls if smoothing else nlls.min() - nlls).exp()
        score = contrastive_score(compared[:1], compared[None, 1:], smoothing).item()
        broken = any(nll >= NLL_CAP for one in tokens for nll in one)
        true, *wrong = (-nlls).exp().tolist()
        by_prompt = dict(zip(fact.wrong, wrong, strict=True))
        found = None if broken else score
        verdicts.append(Verdict(fact.id, fact.prompt, fact.answer, true, by_prompt, found))
    return verdicts


#: What stands before and behind a subject.
Template = tuple[str, str]


def _template(request: EditRequest) -> Template | None:
    """Return the prompt around its subject; ``None`` without a subject."""
    start, end = request.subject_start, request.subject_end
    if start is None or end is None:
        return None
    return request.prompt[:start], request.prompt[end:]


@dataclass
class _Wording:
    relation: str | None
    answers: set[str]


def _wordings(
    requests: Sequence[EditRequest], relations: Sequence[str | None]
) -> dict[Template, _Wording]:
    found: dict[Template, _Wording] = {}
    for request, relation in zip(requests, relations, strict=True):
        template = _template(request)
        if template is not None:
            one = found.setdefault(template, _Wording(relation, set()))
            one.answers |= {normalise(text) for text in _answers(request)}
    return found


def _answers(request: EditRequest) -> Iterator[str]:
    yield request.target
    if request.old_target:
        yield request.old_target


def _other_relations(
    wordings: Mapping[Template, _Wording], template: Template, relation: str | None
) -> list[list[Template]]:
    """Return the wordings of every relation but one, by relation."""
    own = wordings[template]
    groups: dict[str | Template, list[Template]] = {}
    for text, other in wordings.items():
        if relation is not None and other.relation is not None:
            differs = other.relation != relation
        else:
            differs = text != template and not own.answers & other.answers
        if differs:
            groups.setdefault(other.relation or text, []).append(text)
    return list(groups.values())
