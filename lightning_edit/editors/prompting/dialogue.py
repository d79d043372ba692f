"""Dialogue of MeLLo: a question is divided into sub-questions, each checked against stored facts.

The four demonstrations were written for this library, in the paper's format.
"""

from dataclasses import dataclass
from typing import Literal

#: What the model is stopped before: a retrieval, the next demonstration.
STOPS = ("Retrieved fact:", "Question:")
_SUBQUESTION, _ANSWER, _FINAL = "Subquestion:", "Generated answer:", "Final answer:"

_DEMONSTRATIONS = (
    "Question: What is the capital of the country where the inventor of the ballpoint pen was born?"
    """
Subquestion: Who invented the ballpoint pen?
Generated answer: The ballpoint pen was invented by László Bíró.
Retrieved fact: The ballpoint pen was invented by Grace Hopper.
The retrieved fact contradicts the generated answer.
Intermediate answer: Grace Hopper
Subquestion: In which country was Grace Hopper born?
Generated answer: Grace Hopper was born in the United States of America.
Retrieved fact: The author of The Little Prince is Karen Blixen.
The retrieved fact does not contradict the generated answer.
Intermediate answer: United States of America
Subquestion: What is the capital of the United States of America?
Generated answer: The capital of the United States of America is Washington.
Retrieved fact: The capital of Peru is Cusco.
The retrieved fact does not contradict the generated answer.
Intermediate answer: Washington
Final answer: Washington
""",
    "Question: Which language is spoken by most people in the home country of the band ABBA?"
    """
Subquestion: From which country is the band ABBA?
Generated answer: The band ABBA is from Sweden.
Retrieved fact: The band ABBA is from Portugal.
The retrieved fact contradicts the generated answer.
Intermediate answer: Portugal
Subquestion: Which language is spoken by most people in Portugal?
Generated answer: Most people in Portugal speak Portuguese.
Retrieved fact: The official language of Iceland is Danish.
The retrieved fact does not contradict the generated answer.
Intermediate answer: Portuguese
Final answer: Portuguese
""",
    "Question: Who founded the company that makes the PlayStation?"
    """
Subquestion: Which company makes the PlayStation?
Generated answer: The PlayStation is made by Sony.
Retrieved fact: The PlayStation 2 was released in Canada.
The retrieved fact does not contradict the generated answer.
Intermediate answer: Sony
Subquestion: Who founded Sony?
Generated answer: Sony was founded by Masaru Ibuka.
Retrieved fact: Sony was founded by Clara Barton.
The retrieved fact contradicts the generated answer.
Intermediate answer: Clara Barton
Final answer: Clara Barton
""",
    "Question: On which continent does the sport that Pelé played have its origin?"
    """
Subquestion: Which sport did Pelé play?
Generated answer: Pelé played football.
Retrieved fact: Pelé played the sport of cricket.
The retrieved fact contradicts the generated answer.
Intermediate answer: cricket
Subquestion: In which country does cricket have its origin?
Generated answer: Cricket has its origin in England.
Retrieved fact: The sport of baseball was created in Japan.
The retrieved fact does not contradict the generated answer.
Intermediate answer: England
Subquestion: On which continent is England?
Generated answer: England is on the continent of Europe.
Retrieved fact: The continent of Egypt is Asia.
The retrieved fact does not contradict the generated answer.
Intermediate answer: Europe
Final answer: Europe
""",
)
#: The demonstrations, each with the blank line behind it.
DEMONSTRATIONS = tuple(f"{one}\n" for one in _DEMONSTRATIONS)


@dataclass(frozen=True)
class Turn:
    """What the model has written up to a stop.

    Args:
        kind: ``subquestion``: it asks for a fact. ``final``: it is about to answer.
            ``unparseable``: neither.
        text: What is kept of it.
        subquestion: The sub-question.
    """

    kind: Literal["subquestion", "final", "unparseable"]
    text: str
    subquestion: str = ""


def parse(text: str) -> Turn:
    r"""Parse a turn of the model.

    Args:
        text: What it has written, without the stop.

    Example:
        >>> parse("Subquestion: Who wrote Emma?\nGenerated answer: Jane Austen").subquestion
        'Who wrote Emma?'
        >>> parse("Intermediate answer: Jane\nFinal answer: Jane\nmore").text
        'Intermediate answer: Jane\nFinal answer:'
        >>> parse("I do not know.").kind
        'unparseable'
    """
    text = text.strip()
    final = text.find(_FINAL)
    if final >= 0:
        return Turn("final", text[: final + len(_FINAL)])
    lines = text.split("\n")
    asked = [one for one in lines if one.startswith(_SUBQUESTION)]
    subquestion = asked[-1].removeprefix(_SUBQUESTION).strip() if asked else ""
    answered = any(one.startswith(_ANSWER) for one in lines)
    if not subquestion or not answered:
        return Turn("unparseable", text)
    return Turn("subquestion", text, subquestion)


@dataclass(frozen=True)
class Dialogue:
    """A dialogue about one question, up to where its answer begins.

    Args:
        transcript: What the model reads before its answer; ends with ``Final answer:``.
        answered: Whether the dialogue came to a final answer.
        facts: The retrieved facts, in order.
        read: Tokens that the model has read in the turns of the dialogue, all calls together.
    """

    transcript: str
    answered: bool
    facts: tuple[str, ...] = ()
    read: int = 0


def ended(transcript: str, facts: tuple[str, ...]) -> Dialogue:
    """Return a dialogue that came to no answer: it is cut where the answer should stand.

    Args:
        transcript: What has been said.
        facts: The facts retrieved so far.
    """
    between = "" if transcript.endswith("\n") else "\n"
    return Dialogue(f"{transcript}{between}{_FINAL}", False, facts)
