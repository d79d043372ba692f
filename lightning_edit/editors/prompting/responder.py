"""Responder that puts texts before prompts, and asks another responder."""

from collections.abc import Callable, Collection, Sequence

from lightning_edit.inference.generation import LINE_BREAK
from lightning_edit.inference.responder import Question, Responder, Statement, TokenScores

#: From a prompt, an answer and the separator between them to the prompt that is asked.
Tell = Callable[[str, str, str | None], str]
#: Number of tokens of a prompt, as the model reads it.
CountTokens = Callable[[str], int]


class PromptingResponder(Responder):
    """Asks prompts with texts in front of them; running text is asked as it is.

    Args:
        inner: What is asked.
        tell: Returns a prompt with its texts; an empty answer stands for a generated one.
        tokens: Counts the tokens of a prompt.
    """

    def __init__(self, inner: Responder, tell: Tell, tokens: CountTokens) -> None:
        self.inner = inner
        self.tell = tell
        self.tokens = tokens

    def added_tokens(self, questions: Sequence[Question]) -> list[int]:
        """Return the tokens of the texts that stand before each question."""
        told = [self._question(one) for one in questions]
        pairs = zip(told, questions, strict=True)
        return [self.tokens(after.prompt) - self.tokens(before.prompt) for after, before in pairs]

    def loglikelihood(self, statements: Sequence[Statement]) -> list[TokenScores]:
        """Score answers behind prompts with their texts."""
        return self.inner.loglikelihood([self._statement(one) for one in statements])

    def loglikelihood_rolling(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> list[TokenScores]:
        """Score running text as it is."""
        return self.inner.loglikelihood_rolling(texts, max_tokens)

    def generate_until(
        self, questions: Sequence[Question], stop: Sequence[str] = LINE_BREAK
    ) -> list[str]:
        """Continue prompts with their texts."""
        return self.inner.generate_until([self._question(one) for one in questions], stop)

    def ask(
        self,
        statements: Sequence[Statement],
        questions: Sequence[Question],
        likely: Collection[Statement] = (),
    ) -> tuple[list[TokenScores], list[str]]:
        """Score answers and continue prompts in one call."""
        return self.inner.ask(
            [self._statement(one) for one in statements],
            [self._question(one) for one in questions],
            [self._statement(one) for one in likely],
        )

    def _statement(self, one: Statement) -> Statement:
        return one._replace(prompt=self.tell(one.prompt, one.answer, one.separator))

    def _question(self, one: Question) -> Question:
        return one._replace(prompt=self.tell(one.prompt, "", one.separator))
