"""MemPrompt: Madaan et al., Memory-assisted Prompt Editing, EMNLP 2022, arXiv 2201.06009."""

import re
import unicodedata
from functools import lru_cache
from typing import Literal

from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.editors.prompting.context import Context
from lightning_edit.editors.prompting.facts import Fact, FactMemory

#: English words that do not count in a key; the text of other languages is kept whole.
_STOP_WORDS = re.compile(
    r"\b(an?|the|of|in|on|at|to|by|for|from|with|and|or|is|are|was|were|be|been|do|does|did|has|have"
    r"|had|what|which|who|whom|whose|where|when|how|that|this|these|those|its?)\b"
)
#: Questions with and without a clarification, in the form of the question that is asked.
_EXAMPLES = (
    "Question: The longest river of Europe is\nAnswer: Volga\n\n",
    "Question: Oak is the wood of a | clarification: Oak is the wood of a palm\nAnswer: palm\n\n",
    "Question: Who painted the Night Watch?\nAnswer: Rembrandt\n\n",
    "Question: The anthem of Brno is sung in | clarification: The anthem of Brno is sung in Welsh\n"
    "Answer: Welsh\n\n",
)


class MemPrompt(PromptingEditor):
    """Memory of questions with clarifications; that of the closest question joins the prompt.

    The paper stores what a user says about a *misunderstood* question of a lexical task or of
    ethics. Editing facts with it is an adaptation: the question is the edit's prompt, and the
    clarification is the new fact. The subject stays in the key, where the paper removes the word
    that is asked about: without it all questions of a relation would be one.

    A prompt that hits is asked as "Question: <prompt> | clarification: <new fact>", "Answer:",
    behind four examples in this form; any other prompt is asked plain. Of equally close questions
    the newest counts.

    Args:
        match: ``levenshtein``: edit distance of the normalised questions (in lower case, without
            punctuation and English stop words). ``semantic``: similarity by ``encoder``, which the
            paper trains for its tasks.
        distance: A question hits below this distance. It does not depend on the length: short names
            of the same relation may hit each other; so do most questions in Chinese or Japanese,
            where a character says more: there take 1 or 2, or ``semantic``.
        similarity: A question hits from this similarity on.
        examples: Whether the examples stand before the question.
        encoder: See :class:`PromptingEditor`.
        answer_room: See :class:`PromptingEditor`.

    Note:
        What a prompt says is taken up by models that learnt to read instructions: an instruct model
        of 135 M answered 9 of 12 facts, the embedded one, trained on single statements, none.
    """

    def __init__(
        self,
        match: Literal["levenshtein", "semantic"] = "levenshtein",
        distance: int = 6,
        similarity: float = 0.9,
        examples: bool = True,
        encoder: str = "lexical",
        answer_room: int = 24,
    ) -> None:
        super().__init__(encoder, answer_room)
        self.match = match
        self.distance = distance
        self.similarity = similarity
        self.examples = examples

    def require_arguments(self) -> None:
        """Check the arguments of this editor."""
        super().require_arguments()
        known = ("levenshtein", "semantic")
        self.require(self.match in known, "match", " or ".join(known), self.match)
        self.require(self.distance >= 1, "distance", "1 or more", self.distance)
        self.require(-1 <= self.similarity < 1, "similarity", "below 1", self.similarity)

    def context(self, prompt: str, memory: FactMemory) -> Context | None:
        """Append the clarification of the closest question, if one hits."""
        fact = self._clarification(prompt, memory)
        if fact is None:
            return None
        question = f"Question: {prompt.strip()} | clarification: {fact.sentence}\nAnswer:"
        return Context(question, _EXAMPLES if self.examples else ())

    def _clarification(self, prompt: str, memory: FactMemory) -> Fact | None:
        if self.match == "semantic":
            found = memory.nearest(prompt, 1, self.similarity)
            return found[0] if found else None
        key, closest, nearest = normalised(prompt), self.distance, None
        for fact in reversed(memory.facts):
            distance = levenshtein(key, normalised(fact.prompt), closest)
            if distance < closest:
                closest, nearest = distance, fact
        return nearest


@lru_cache(maxsize=1 << 16)
def normalised(question: str) -> str:
    """Return the key of a question: lower case, no punctuation, no English stop words.

    Args:
        question: The question.

    Example:
        >>> normalised("What is the capital of France?")
        'capital france'
    """
    folded = unicodedata.normalize("NFKC", question).casefold()
    kept = "".join(one if unicodedata.category(one)[0] in "LMN" else " " for one in folded)
    without = _STOP_WORDS.sub(" ", kept)
    return " ".join(without.split() or kept.split())


def levenshtein(one: str, other: str, limit: int) -> int:
    """Return the edit distance of two texts, or ``limit`` if it is not below that.

    Args:
        one: A text.
        other: Another.
        limit: Distances from here on are not told apart.

    Example:
        >>> levenshtein("kitten", "sitting", 6), levenshtein("a", "bcd", 2)
        (3, 2)
    """
    if abs(len(one) - len(other)) >= limit:
        return limit
    row = list(range(len(other) + 1))
    for place, left in enumerate(one, start=1):
        before, row = row, [place]
        for column, right in enumerate(other, start=1):
            row.append(min(before[column] + 1, row[-1] + 1, before[column - 1] + (left != right)))
        if min(row) >= limit:
            return limit
    return min(row[-1], limit)
