"""Token ids of training texts and facts, as losses: rows of prompt and learnt tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_edit.analysis.training_data.rows import TracedFact, TrainingText
from lightning_edit.exceptions import DataError
from lightning_edit.inference.answer_rows import AnswerRow
from lightning_edit.models.prompt_encoder import PromptEncoder


@dataclass(frozen=True)
class LossRows:
    """A sample's loss: a signed sum of mean negative log-likelihoods of rows.

    Args:
        rows: Token ids of prompts and of what is learnt after them.
        signs: Sign of each row.
    """

    rows: tuple[AnswerRow, ...]
    signs: tuple[float, ...] = (1.0,)

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(prompt) + len(answer) for prompt, answer in self.rows)


def encode_texts(
    model: Any, encoder: PromptEncoder, texts: Sequence[TrainingText]
) -> list[LossRows]:
    """Encode training texts: the loss of each is the mean over its learnt tokens.

    Args:
        model: The language model.
        encoder: Its tokenizer, with the format of prompts.
        texts: The texts.

    Raises:
        DataError: If a text is too long for the model, or has no token to learn; or if a text
            without a prompt is given to an encoder-decoder.
    """
    encoder = PromptEncoder.for_model(model, encoder)
    return [LossRows((_text_row(model, encoder, text),)) for text in texts]


def encode_facts(model: Any, encoder: PromptEncoder, facts: Sequence[TracedFact]) -> list[LossRows]:
    r"""Encode facts: the functional whose causes are looked for, reconstructed.

    With a correct answer it is the contrast :math:`\ell(answer) - \ell(correct)`, without one
    :math:`\ell(answer)`, each the mean over the answer's tokens. What the paper differentiates is
    not known; the contrast is that of Contrastive Error Attribution (ACL 2023).

    Args:
        model: The language model.
        encoder: Its tokenizer, with the format of prompts.
        facts: The facts.

    Raises:
        DataError: If a prompt and its answer are too long for the model.
    """
    encoder = PromptEncoder.for_model(model, encoder)
    found = []
    for fact in facts:
        answers = [fact.answer] if fact.correct is None else [fact.answer, fact.correct]
        rows = tuple(_pair(model, encoder, fact.prompt, one, fact.id) for one in answers)
        found.append(LossRows(rows, (1.0, -1.0)[: len(rows)]))
    return found


def _text_row(model: Any, encoder: PromptEncoder, text: TrainingText) -> AnswerRow:
    if text.prompt is not None:
        return _pair(model, encoder, text.prompt, text.text, text.id)
    if encoder.two_stacks:
        raise DataError(
            f'training text {text.id!r}: expected "prompt" and "answer", since an encoder reads '
            'the one and the decoder learns the other, got "text"; divide it'
        )
    ids = encoder.running(text.text)
    room = encoder.limits.positions
    if len(ids) < 2:
        raise DataError(
            f"training text {text.id!r}: expected at least two tokens, got {len(ids)}; the first "
            "predicts the second. Leave the text out"
        )
    if room is not None and len(ids) > room:
        raise DataError(
            f"training text {text.id!r}: expected at most {room} tokens, the model's positions, "
            f"got {len(ids)}; divide it as it was divided for training"
        )
    return ids[:1], ids[1:]


def _pair(model: Any, encoder: PromptEncoder, prompt: str, answer: str, name: str) -> AnswerRow:
    try:
        ((before, learnt),) = encoder.pairs([(prompt, answer)])
    except ValueError as error:
        raise DataError(f"{name!r} cannot be encoded: {error}") from error
    return before, encoder.labels(model, learnt)
