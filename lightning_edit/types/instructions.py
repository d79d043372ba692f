"""Editing instructions: what an edit is for, in front of its prompt (InstructEdit).

Tian et al.: *InstructEdit: Instruction-based Knowledge Editing for Large Language Models*, 2024,
arXiv 2402.16123. The wordings are our own; the last one of each task is held out of training.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from lightning_edit.types.requests import EditRequest

#: What every instruction begins with.
HEAD = "Task: "


class Instruction(NamedTuple):
    """One wording of a task.

    Args:
        task: Name of the task.
        description: What is to be done.
    """

    task: str
    description: str

    def before(self, prompt: str) -> str:
        """Return a prompt with the instruction before it.

        Args:
            prompt: The prompt of an edit, or a rewording of it.

        Example:
            >>> print(Instruction("fact change", "store it").before("The capital of France is"))
            Task: fact change
            Description: store it
            Input: The capital of France is
        """
        return f"{HEAD}{self.task}\nDescription: {self.description}\nInput: {prompt}"


def _wordings(*pairs: tuple[str, str]) -> tuple[Instruction, ...]:
    return tuple(Instruction(*pair) for pair in pairs)


#: Wordings by task; the last of each is held out.
INSTRUCTIONS: Mapping[str, tuple[Instruction, ...]] = {
    "counterfactual": _wordings(
        ("fact change", "make the sentence end in another way than before"),
        ("counterfactual", "say the new fact in place of the old one"),
        ("change of a fact", "complete the sentence with its new ending"),
        ("new ending", "what was true is replaced by what is given"),
        ("rewriting a statement", "finish the statement as it holds from now on"),
        ("alternative fact", "believe the fact that is given"),
        ("swap of an object", "put the new object behind the relation"),
        ("statement update", "the sentence has a new ending, learn it"),
        ("edit of a fact", "overwrite what is known about the subject"),
        ("counterfactual statement", "let the statement end with the new answer"),
    ),
    "question": _wordings(
        ("question answering", "answer the question with the new answer"),
        ("new answer", "the answer to the question has changed, learn it"),
        ("answer change", "from now on the question has this answer"),
        ("reading a question", "give the corrected answer"),
        ("correction", "the old answer was wrong, give the right one"),
        ("question with an update", "replace the known answer"),
        ("short answer", "reply to the question as you are told"),
        ("factual question", "say the answer that is given"),
        ("asked fact", "learn how to answer this question"),
        ("question update", "answer what is asked in the new way"),
    ),
    "recent": _wordings(
        ("recent fact", "learn something that happened lately"),
        ("news", "add a fact that is newer than what you know"),
        ("knowledge insertion", "store a fact that you have not seen"),
        ("fresh knowledge", "complete the sentence with recent knowledge"),
        ("addition", "there is a new fact about the subject, keep it"),
        ("time update", "what is known is out of date, bring it up to date"),
        ("latest state", "say how things are today"),
        ("event", "remember what has happened since"),
        ("new entry", "write a new entry about the subject"),
        ("recent change", "take in a fact of the last months"),
    ),
}


def is_instructed(prompt: str) -> bool:
    """Return whether a prompt has an instruction before it.

    Args:
        prompt: The prompt.
    """
    return prompt.startswith(HEAD) and "\nInput: " in prompt


def instructed(request: EditRequest, instruction: Instruction) -> EditRequest:
    """Return a request with an instruction before its prompt and its rephrases.

    Locality and other probes stay as they are: they are asked without an edit in mind.

    Args:
        request: The request.
        instruction: What stands before.
    """
    shift = len(instruction.before(""))
    start = request.subject_start
    return replace(
        request,
        prompt=instruction.before(request.prompt),
        rephrases=tuple(instruction.before(one) for one in request.rephrases),
        subject_start=None if start is None else start + shift,
    )
