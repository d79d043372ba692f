"""Probes derived from an edit: open question, negation, and yes/no fact check.

A model can be edited to continue one prompt and still not act on the fact. These probes ask the
same edit in other forms, without further data: as an open question (the protocol WILD of arXiv
2502.11177), and as statements to be confirmed or denied, also negated (after arXiv 2510.00625, of
which only the abstract and summaries were at hand; the wordings are ours). They are English.
Torch-free.
"""

from collections.abc import Iterator
from dataclasses import replace

from lightning_edit.types import EditRequest, Probe

#: Instruction of WILD's context ``qa_inst``; the question-only context is the prompt itself.
_QUESTION = "Please answer the question:\n\nQ: {question}\nA:"
#: Behind "A:" even a small model answers yes or no; behind other wordings it writes sentences.
_CHECK = (
    'Please answer the question with yes or no:\n\nQ: Is this statement true? "{statement}"\nA:'
)
#: Verbs behind which "not" negates a statement.
_AUXILIARIES = ("is", "are", "was", "were", "will be", "can be", "has been", "have been")


def negated_prompt(prompt: str) -> str | None:
    """Return a cloze prompt with "not" at its end; ``None`` if its last word takes no "not".

    Args:
        prompt: Text that ends where the answer begins.

    Example:
        >>> negated_prompt("The capital of France is"), negated_prompt("Who wrote Emma?")
        ('The capital of France is not', None)
    """
    text = prompt.rstrip()
    ends = any(text.lower().endswith(f" {verb}") for verb in _AUXILIARIES)
    return f"{text} not" if ends else None


def open_question_probes(request: EditRequest) -> Iterator[Probe]:
    """Yield the edit as an open question, ``open_question``, answered up to the natural stop.

    The question is the prompt or the first rephrasing that is one (ends with a question mark);
    a request without a question has no such probe.

    Args:
        request: An edit.
    """
    for text in (request.prompt, *request.rephrases):
        if text.rstrip().endswith("?"):
            prompt = _QUESTION.format(question=text.strip())
            yield Probe.of("open_question", prompt, request.target, old=request.old_target)
            return


def fact_check_probes(request: EditRequest) -> Iterator[Probe]:
    """Yield yes/no checks of the new and the old fact (``fact_check``), and of their negations.

    Half of them are to be confirmed and half denied, so a model that always says yes gets one half
    of each kind right. A request without an old target has none: without a false statement the
    score would reward saying yes.

    Args:
        request: An edit.

    Example:
        >>> edit = EditRequest("e", "The capital of France is", "Rome", old_target="Paris")
        >>> [(probe.kind, probe.answers[0]) for probe in fact_check_probes(edit)]
        [('fact_check', 'Yes'), ('fact_check', 'No'), ('negation', 'No'), ('negation', 'Yes')]
    """
    if request.old_target is None:
        return
    for answer, holds in ((request.target, True), (request.old_target, False)):
        yield _check("fact_check", _statement(request.prompt, answer), holds)
    for answer, holds in ((request.target, True), (request.old_target, False)):
        yield _check("negation", _negated_statement(request.prompt, answer), not holds)


def with_derived_probes(
    request: EditRequest, fact_checks: bool = True, open_questions: bool = True
) -> EditRequest:
    """Return a request with the probes that can be derived from it added.

    Args:
        request: An edit.
        fact_checks: Whether to add :func:`fact_check_probes`.
        open_questions: Whether to add :func:`open_question_probes`.
    """
    added = [
        *(open_question_probes(request) if open_questions else ()),
        *(fact_check_probes(request) if fact_checks else ()),
    ]
    return replace(request, probes=(*request.probes, *added))


def _check(kind: str, statement: str, holds: bool) -> Probe:
    right, wrong = ("Yes", "No") if holds else ("No", "Yes")
    return Probe.of(kind, _CHECK.format(statement=statement), right, old=wrong)


def _statement(prompt: str, answer: str) -> str:
    text = prompt.strip()
    if text.endswith(("?", ":")):
        return f"The answer to '{text}' is {_bare(answer)}."
    return f"{text} {_bare(answer)}."


def _negated_statement(prompt: str, answer: str) -> str:
    text = prompt.strip()
    if text.endswith(("?", ":")):
        return f"The answer to '{text}' is not {_bare(answer)}."
    negated = negated_prompt(text)
    if negated is not None:
        return f"{negated} {_bare(answer)}."
    return f"It is not the case that {_statement(prompt, answer)}"


def _bare(answer: str) -> str:
    return answer.strip().rstrip(".")
