"""Judges: who decides whether a generated text is right. Nothing here imports torch.

Two rules are named, ``answer_first`` (the default, the measure ``answer@gen``) and ``exact``
(``em@gen``). Anything that can be called with a prompt, a generated text and the accepted answers
is a judge as well, such as a function that asks another language model (LLM-as-a-judge).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.functional.text import answers_match, starts_with_answer

JudgeName = Literal["answer_first", "exact"]


@runtime_checkable
class Judge(Protocol):
    """Verdict on a generated text: a number between 0 (wrong) and 1 (right), or a truth value."""

    def __call__(self, prompt: str, generated: str, answers: Sequence[str], /) -> float | bool:
        """Judge one text.

        Args:
            prompt: The prompt that the model continued.
            generated: Its continuation, one line.
            answers: The accepted answers, the preferred one first.
        """


JudgeLike: TypeAlias = JudgeName | Callable[[str, str, Sequence[str]], float]
"""A judge, or the name of one; options that take one accept a dotted path in YAML."""


def exact(prompt: str, generated: str, answers: Sequence[str]) -> bool:
    """Judge by exact match: the text is an accepted answer and nothing else (``em@gen``).

    Args:
        prompt: Not used.
        generated: The model's continuation.
        answers: The accepted answers.
    """
    return answers_match(generated, answers)


def answer_first(prompt: str, generated: str, answers: Sequence[str]) -> bool:
    """Judge by the beginning: the text starts with an accepted answer (``answer@gen``).

    Args:
        prompt: Not used.
        generated: The model's continuation.
        answers: The accepted answers.
    """
    return starts_with_answer(generated, answers)


def find_judge(judge: JudgeLike | str) -> Judge | None:
    """Return the judge to ask; ``None`` for ``answer_first``, whose verdict every row has anyway.

    Args:
        judge: A name or a callable.

    Raises:
        ValueError: If it is neither.
    """
    if judge == "answer_first" or judge is answer_first:
        return None
    if judge == "exact":
        return exact
    if not isinstance(judge, str):
        return judge
    raise ValueError(
        f"`judge` must be answer_first, exact, or a function of prompt, generated text and "
        f"accepted answers; got {judge!r}"
    )


def judged(scores: Sequence[ProbeScore], judge: Judge | None) -> list[ProbeScore]:
    """Add a judge's verdicts to outcomes, as :attr:`ProbeScore.judged`.

    The judge is asked once about equal texts. Outcomes without a generated text stay as they are.

    Args:
        scores: Outcomes of probes.
        judge: The judge; ``None`` to leave the outcomes unchanged.

    Raises:
        ValueError: If the judge answers anything but a number from 0 to 1.

    Example:
        >>> score = ProbeScore("e", "rewrite", "It is", ("Rome",), "target", generated="Rome, Io")
        >>> judged([score], exact)[0].measures()["judge@gen"]
        0.0
    """
    if judge is None:
        return list(scores)
    known: dict[tuple[str, str, tuple[str, ...]], float] = {}
    found = []
    for score in scores:
        if score.generated is None:
            found.append(score)
            continue
        asked = score.prompt, score.generated, score.answers
        if asked not in known:
            known[asked] = _checked(judge, *asked)
        found.append(replace(score, judged=known[asked]))
    return found


def _checked(judge: Judge, prompt: str, generated: str, answers: tuple[str, ...]) -> float:
    verdict = judge(prompt, generated, answers)
    try:
        value = float(verdict)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value <= 1:
        raise ValueError(
            f"the judge {getattr(judge, '__name__', type(judge).__name__)!r} answered {verdict!r} "
            f"about {generated!r} after {prompt!r}; return True or False, or a number from 0 to 1"
        )
    return value
