"""Responder that mixes the predictions of two models of one vocabulary, weighted by the scope.

EasyEdit's form of SERAC at evaluation. Axis names: ``a`` -- answer tokens; ``v`` -- vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.routing.memory import Choice, ScopeMemory
from lightning_edit.exceptions import DataError
from lightning_edit.functional.scope import mixed_log_probabilities
from lightning_edit.functional.scores import token_scores
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.inference.generation import LINE_BREAK, stops, until
from lightning_edit.inference.responder import Question, Responder, Statement, TokenScores
from lightning_edit.models.prompt_encoder import Ids, PromptEncoder, PromptText


class SoftResponder(Responder):
    r"""Answers with :math:`(1-\beta)p_f + \beta p_h`, the scope score as the weight.

    Both models read every prompt, the counterfactual one behind the most similar edit. Each prompt
    is answered alone, without a cache: this form is for comparison with published numbers.

    Args:
        memory: The edits in force.
        base: Responder of the base model, for an empty memory and running text.
        models: Base model and counterfactual model.
        prompts: Their token ids.
    """

    def __init__(
        self,
        memory: ScopeMemory,
        base: Responder,
        models: tuple[Any, Any],
        prompts: tuple[PromptEncoder, PromptEncoder],
    ) -> None:
        self.memory = memory
        self.base = base
        self.models = models
        self.prompts = prompts

    def loglikelihood(self, statements: Sequence[Statement]) -> list[TokenScores]:
        """Score given answers with the mixture."""
        if not self.memory.edits:
            return self.base.loglikelihood(statements)
        choices = self.memory.choose([one.prompt for one in statements])
        return [self._score(one, choices[one.prompt]) for one in statements]

    def loglikelihood_rolling(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> list[TokenScores]:
        """Score running text with the base model."""
        return self.base.loglikelihood_rolling(texts, max_tokens)

    def generate_until(
        self, questions: Sequence[Question], stop: Sequence[str] = LINE_BREAK
    ) -> list[str]:
        """Continue prompts greedily with the mixture."""
        if not self.memory.edits:
            return self.base.generate_until(questions, stop)
        choices = self.memory.choose([one.prompt for one in questions])
        return [self._continue(one, choices[one.prompt], stop) for one in questions]

    def _score(self, asked: Statement, choice: Choice) -> TokenScores:
        text = PromptText(asked.prompt, asked.answer, None, asked.separator)
        rows = [(one.prompt, one.answer) for one in self._both(text, choice)]
        nll, best = token_scores(self._mixed(rows, choice.score), torch.tensor(rows[0][1]))
        return TokenScores(rows[0][1], tuple(best.tolist()), tuple(nll.tolist()))

    def _continue(self, asked: Question, choice: Choice, stop: Sequence[str]) -> str:
        text = PromptText(asked.prompt, None, None, asked.separator)
        begun = [one.prompt for one in self._both(text, choice)]
        own = self.prompts[0]
        ends = own.end_tokens(self.models[0])
        new: Ids = ()
        room = own.limits.positions
        while len(new) < asked.limit and (room is None or len(begun[1]) + len(new) < room):
            token = int(self._next(begun, new, choice.score).argmax())
            if token in ends:
                break
            new = (*new, token)
            if stops(own.decode(new), stop):
                break
        return until(own.decode(new), stop)

    def _next(self, begun: Sequence[Ids], new: Ids, weight: float) -> Float[Tensor, " v"]:
        """Return the mixed log-probabilities of the token behind those that are generated."""
        if not self.prompts[0].two_stacks:
            return self._mixed([(prompt + new, ()) for prompt in begun], weight)[0]
        # What is generated is the decoder's; the last token of an answer is predicted, not read.
        return self._mixed([(prompt, (*new, 0)) for prompt in begun], weight)[-1]

    def _both(self, text: PromptText, choice: Choice) -> list[Any]:
        told = text._replace(prompt=choice.edit.context + text.prompt)
        try:
            return [next(self.prompts[0].encode([text])), next(self.prompts[1].encode([told]))]
        except ValueError as error:
            raise DataError(f"the two models cannot read a prompt: {error}") from error

    def _mixed(self, rows: Sequence[AnswerRow], weight: float) -> Float[Tensor, "a v"]:
        base, other = (_logits(model, row) for model, row in zip(self.models, rows, strict=True))
        return mixed_log_probabilities(base, other, torch.full(base.shape[:1], weight))


def _logits(model: Any, row: AnswerRow) -> Float[Tensor, "a v"]:
    with evaluating(model):
        return answer_logits(model, AnswerRows.of(model, [row])).cpu().float()
