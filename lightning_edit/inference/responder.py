"""Responder: the one way to ask an edited model, with the verbs of lm-evaluation-harness.

Scores and texts of a model come from a responder: likelihoods of answers, likelihoods of running
text, greedy continuations. An editor whose edits are updates of weights is asked through
:class:`~lightning_edit.inference.model_responder.ModelResponder`; one that acts at run time
(another model, a text before the prompt) brings its own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from lightning_edit.inference.generation import LINE_BREAK
from lightning_edit.models.prompt_encoder import Ids


class Question(NamedTuple):
    """A prompt to continue greedily.

    Args:
        prompt: The prompt.
        limit: Maximum number of new tokens.
        separator: Text between prompt and answer; ``None``: by rule.
    """

    prompt: str
    limit: int
    separator: str | None = None


class Statement(NamedTuple):
    """A prompt with an answer whose likelihood is asked.

    Args:
        prompt: The prompt.
        answer: The answer.
        separator: Text between prompt and answer; ``None``: by rule.
    """

    prompt: str
    answer: str
    separator: str | None = None


@dataclass(frozen=True)
class TokenScores:
    """Token by token, what a model says of a given text.

    Args:
        tokens: The scored tokens.
        best: The most probable token in the place of each.
        nlls: Negative log-probability of each, in nats.
    """

    tokens: Ids
    best: Ids
    nlls: tuple[float, ...]

    @property
    def total(self) -> float:
        """Negative log-likelihood of the whole text, in nats."""
        return math.fsum(self.nlls)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would have produced exactly these tokens."""
        return self.tokens == self.best


class Responder(ABC):
    """What is asked in place of a bare model.

    A subclass answers three verbs. Each item is answered as if it were asked alone: neither the
    other items of a call nor their order may matter.
    """

    shares_prompts: ClassVar[bool] = True
    """Whether tokens that several prompts have in common may be computed once; ``False`` for
    editors that decide once a prompt what they do."""

    @abstractmethod
    def loglikelihood(self, statements: Sequence[Statement]) -> list[TokenScores]:
        """Score given answers by teacher forcing.

        Args:
            statements: Prompts and answers.

        Returns:
            One result per statement, over the answer's tokens.
        """

    @abstractmethod
    def loglikelihood_rolling(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> list[TokenScores]:
        """Score running text, every token given those before it.

        Args:
            texts: The texts. The first token is not predicted, since it has no context; if the
                tokenizer adds a BOS, that is the first.
            max_tokens: Texts are cut after this many tokens; ``None``: texts that are longer than
                the model's context are scored window by window.

        Returns:
            One result per text, over its predicted tokens.
        """

    @abstractmethod
    def generate_until(
        self, questions: Sequence[Question], stop: Sequence[str] = LINE_BREAK
    ) -> list[str]:
        """Continue prompts greedily, up to an end token, a stop text or the limit.

        Args:
            questions: The prompts.
            stop: Texts before which a continuation is cut.

        Returns:
            One continuation per prompt, without white space around it.
        """

    def added_tokens(self, questions: Sequence[Question]) -> list[int] | None:
        """Return how many tokens of its own the editor has the model read for each question.

        Editors that put texts before prompts override this.

        Args:
            questions: The prompts.

        Returns:
            Tokens beside those of the prompt itself, all calls of the model together; ``None``
            where nobody has said it.
        """
        return None

    def ask(
        self,
        statements: Sequence[Statement],
        questions: Sequence[Question],
        likely: Collection[Statement] = (),
    ) -> tuple[list[TokenScores], list[str]]:
        """Score answers and continue prompts in one call.

        A responder may start continuations from the passes that score answers; results are those
        of the two verbs.

        Args:
            statements: Prompts and answers to score.
            questions: Prompts to continue.
            likely: Statements whose answers are likely continuations of these prompts.
        """
        return self.loglikelihood(statements), self.generate_until(questions)
