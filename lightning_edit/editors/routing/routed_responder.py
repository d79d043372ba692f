"""Responder that sends each prompt to the base model or to a counterfactual model."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from lightning_edit.editors.routing.memory import ScopeMemory
from lightning_edit.exceptions import DataError
from lightning_edit.inference.generation import LINE_BREAK
from lightning_edit.inference.responder import Question, Responder, Statement, TokenScores
from lightning_edit.models.prompt_encoder import Ids, PromptEncoder, PromptText

_Item = TypeVar("_Item", Statement, Question)
#: Stands in for a first choice that has no token of the base vocabulary in its place.
_NO_TOKEN = -1


class RoutedResponder(Responder):
    """Asks the base model outside the scope of all edits, the counterfactual model inside.

    The counterfactual model reads the edit and then the prompt. Running text goes to the base
    model, since it asks nothing.

    Args:
        memory: The edits in force, and the scope of each prompt.
        base: Asks the base model.
        other: Asks the counterfactual model.
        own: Token ids of the base model.
        foreign: Token ids of the counterfactual model, where the base model has others for the same
            answer: another vocabulary, or a chat template. What it says is then given in the base
            model's tokens, by its text, while ``nlls`` stay those of its own tokens.
    """

    def __init__(
        self,
        memory: ScopeMemory,
        base: Responder,
        other: Responder,
        own: PromptEncoder,
        foreign: PromptEncoder | None = None,
    ) -> None:
        self.memory = memory
        self.base = base
        self.other = other
        self.own = own
        self.foreign = foreign

    def loglikelihood(self, statements: Sequence[Statement]) -> list[TokenScores]:
        """Score given answers, each by the model that its prompt is sent to."""
        return self.ask(statements, ())[0]

    def loglikelihood_rolling(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> list[TokenScores]:
        """Score running text with the base model."""
        return self.base.loglikelihood_rolling(texts, max_tokens)

    def generate_until(
        self, questions: Sequence[Question], stop: Sequence[str] = LINE_BREAK
    ) -> list[str]:
        """Continue prompts greedily, each by the model that it is sent to."""
        near, far = self._split(questions)
        texts: dict[Question, str] = {}
        if far:
            texts |= zip(far, self.base.generate_until(list(far), stop), strict=True)
        if near:
            with _named():
                said = self.other.generate_until(_told(near), stop)
            texts |= zip(near, said, strict=True)
        return [texts[one] for one in questions]

    def ask(
        self,
        statements: Sequence[Statement],
        questions: Sequence[Question],
        likely: Collection[Statement] = (),
    ) -> tuple[list[TokenScores], list[str]]:
        """Score answers and continue prompts, one call for each of the two models."""
        near, far = self._split(statements)
        near_q, far_q = self._split(questions)
        near_l, far_l = self._split(list(likely))
        scores: dict[Statement, TokenScores] = {}
        texts: dict[Question, str] = {}
        if far or far_q:
            found = self.base.ask(list(far), list(far_q), list(far_l))
            scores |= zip(far, found[0], strict=True)
            texts |= zip(far_q, found[1], strict=True)
        if near or near_q:
            with _named():
                found = self.other.ask(_told(near), _told(near_q), _told(near_l))
            scores |= zip(near, map(self._in_own_tokens, near, found[0]), strict=True)
            texts |= zip(near_q, found[1], strict=True)
        return [scores[one] for one in statements], [texts[one] for one in questions]

    def _split(self, items: Sequence[_Item]) -> tuple[dict[_Item, str], dict[_Item, str]]:
        """Return the items inside some edit's scope with the edit's text, and the others."""
        if not self.memory.edits:
            return {}, dict.fromkeys(items, "")
        choices = self.memory.choose([one.prompt for one in items])
        inside: dict[_Item, str] = {}
        outside: dict[_Item, str] = {}
        for one in items:
            choice = choices[one.prompt]
            side = inside if choice.inside else outside
            side[one] = choice.edit.context if choice.inside else ""
        return inside, outside

    def _in_own_tokens(self, asked: Statement, found: TokenScores) -> TokenScores:
        if self.foreign is None:
            return found
        return in_tokens_of(self.own, asked, found, self.foreign.decode(found.best))


def in_tokens_of(
    own: PromptEncoder, asked: Statement, found: TokenScores, said: str
) -> TokenScores:
    """Give another model's first choices in one's own tokens, by their text.

    Args:
        own: Tokeniser of the result.
        asked: Prompt and answer.
        found: Scores of a model of another vocabulary, in its tokens.
        said: Text of its first choices.

    Returns:
        One's own tokens of the answer; the first choices, equal to them exactly if the texts are,
        and -1 where a choice has no token in that place; ``nlls`` as found.
    """
    tokens = _answer_tokens(own, asked)
    if found.is_greedy or said.strip() == asked.answer.strip():
        return TokenScores(tokens, tokens, found.nlls)
    try:
        chosen = _answer_tokens(own, asked._replace(answer=said.strip()))
    except ValueError:  # no text at all
        chosen = ()
    best = (*chosen, *[_NO_TOKEN] * len(tokens))[: len(tokens)]
    if best == tokens:  # its text goes on behind the answer's
        best = (*best[:-1], _NO_TOKEN)
    return TokenScores(tokens, best, found.nlls)


def _answer_tokens(own: PromptEncoder, asked: Statement) -> Ids:
    text = PromptText(asked.prompt, asked.answer, None, asked.separator)
    (encoded,) = own.encode([text])
    return encoded.answer


def _told(contexts: dict[_Item, str]) -> list[_Item]:
    return [one._replace(prompt=context + one.prompt) for one, context in contexts.items()]


@contextmanager
def _named() -> Iterator[None]:
    """Say of an error in a text that it is the counterfactual model's, with an edit before it."""
    try:
        yield
    except ValueError as error:
        raise DataError(
            f"the counterfactual model cannot read a prompt behind its edit: {error}"
        ) from error
