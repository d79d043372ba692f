"""Memory of hidden states: what feed-forward networks read in text that an edit must not touch.

Axis names: ``m`` -- hidden states; ``d`` -- hidden width; ``n`` -- extra neurons.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.atlas.text import corpus
from lightning_edit.editors.neurons.answer_pass import read_answers, read_states
from lightning_edit.exceptions import DataError, SolveError
from lightning_edit.functional.visible import visible
from lightning_edit.models.prompt_encoder import Ids, PromptEncoder, PromptText
from lightning_edit.models.view import ModelView
from lightning_edit.statistics.texts import texts_of
from lightning_edit.types import EditRequest

#: Every so many texts one is kept for the stopping rule instead of the training.
_HELD_OUT = 5
#: Longest part of a text that is read, in tokens.
_LONGEST = 64
#: Hidden states closer than this share of their length are the same one.
_SAME = 1e-3


@dataclass(frozen=True)
class FFNMemory:
    """Hidden states that enter a block's network, text by text.

    Args:
        texts: The texts.
        states: The states of each at all positions but the first; with two stacks, where the
            decoder predicts the text's answer.
    """

    texts: tuple[str, ...]
    states: tuple[Float[Tensor, "_ d"], ...]

    @classmethod
    def read(
        cls, view: ModelView, prompts: PromptEncoder, texts: Iterable[str], block: int, tokens: int
    ) -> "FFNMemory":
        """Read the memory of texts, as many of them as the budget of tokens allows.

        Of each text the beginning is read. With a chat template it is read as the user's turn,
        template included, since answers begin there. With two stacks the last word of a text is
        the answer to what stands before it; a text without spaces is cut in its middle.

        Args:
            view: The language model's structure.
            prompts: Its tokenizer, with the format of prompts.
            texts: The texts.
            block: Number of the block.
            tokens: Most tokens to read.

        Raises:
            DataError: If there is no text of two tokens.
            SolveError: If the states of a text are not finite.
        """
        if view.is_encoder_decoder:
            pairs = _within(_pairs(prompts, texts), tokens)
            answers = read_answers(view, [row for _, row in pairs], block)
            return cls(tuple(text for text, _ in pairs), tuple(answers))._require_finite(block)
        kept = [(text, ids) for text, (ids, _) in _within(_tokenised(prompts, texts), tokens)]
        rows = [ids for _, ids in kept]
        # What all texts begin with (a chat template) is remembered once; the first position, which
        # attends to nothing but itself, never.
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows)))  # noqa: B905  # the shortest text decides
        read = read_states(view, rows, block)
        states = [
            read[0][1:],
            *(state[max(1, min(shared, len(state) - 1)) :] for state in read[1:]),
        ]
        return cls(tuple(text for text, _ in kept), tuple(states))._require_finite(block)

    def _require_finite(self, block: int) -> "FFNMemory":
        broken = [
            text
            for text, states in zip(self.texts, self.states, strict=True)
            if not bool(states.isfinite().all())
        ]
        if broken:
            raise SolveError(
                f"block {block}: what its network reads in {len(broken)} of {len(self.texts)} "
                f"texts of the memory is not finite, such as {visible(broken[0][:40])!r}; load the "
                "model in float32 or bfloat16, undo the edit that damaged it, or give other text "
                "as `memory`"
            )
        return self

    def halves(
        self, request: EditRequest
    ) -> tuple[list[Float[Tensor, "_ d"]], list[Float[Tensor, "_ d"]]]:
        """Return the states for training and those for the stopping rule.

        Texts that state what a request edits are left out: those with its prompt, or with its
        subject and its old or new answer.

        Args:
            request: The request.

        Raises:
            DataError: If all texts for training state it.
        """
        train: list[Tensor] = []
        held_out: list[Tensor] = []
        for number, (text, states) in enumerate(zip(self.texts, self.states, strict=True)):
            if not _states(text, request):
                (held_out if number % _HELD_OUT == _HELD_OUT - 1 else train).append(states)
        if not train:
            raise DataError(
                f"request {request.id}: the memory needs a text that does not state what the "
                f"request edits, got {len(self.texts)} texts that do or are for the stopping rule; "
                "give other text as `memory`"
            )
        return train, held_out or train


def without(memory: Float[Tensor, "m d"], own: Float[Tensor, "n d"]) -> Float[Tensor, "k d"]:
    """Leave out hidden states on which neurons must act: none could be told from its own.

    Args:
        memory: The memory.
        own: The neurons' hidden states.

    Raises:
        SolveError: If states are not finite.
        DataError: If none of the memory is left.
    """
    if not len(own) or not len(memory):
        return memory
    for whose, states in (("the request", own), ("the memory", memory)):
        if not bool(states.isfinite().all()):
            raise SolveError(
                f"the hidden states of {whose} are not finite, so no neuron can be told to fire "
                "on some and not on others; load the model in float32 or bfloat16, or undo the "
                "edit that damaged it"
            )
    nearest = torch.cdist(memory, own).min(1).values
    kept: Tensor = memory[nearest > _SAME * own.norm(dim=1).min()]
    if not len(kept):
        raise DataError(
            f"the memory of {len(memory)} hidden states holds none but those of the request, on "
            "which its neurons must fire; give more text as `memory`"
        )
    return kept


def memory_texts(source: str | Sequence[str] | None) -> Iterable[str]:
    """Return the texts of a memory.

    Args:
        source: A file or data set (one text per line or row), the texts themselves, or ``None`` for
            the training text of the embedded atlas, plain English about geography.
    """
    if source is None:
        return corpus(shuffled=True)
    return texts_of(source) if isinstance(source, str) else source


def _states(text: str, request: EditRequest) -> bool:
    """Return whether a text states a request's fact, the old one or the new one."""
    answers = [one for one in (request.target, request.old_target) if one]
    about = request.subject is not None and request.subject in text
    return request.prompt in text or (about and any(answer in text for answer in answers))


def _within(
    read: Iterable[tuple[str, tuple[Ids, Ids]]], tokens: int
) -> list[tuple[str, tuple[Ids, Ids]]]:
    """Return texts with their token ids up to a budget of tokens."""
    kept: list[tuple[str, tuple[Ids, Ids]]] = []
    room = tokens
    for text, (prompt, answer) in read:
        if len(prompt) + len(answer) > room:
            break
        kept.append((text, (prompt, answer)))
        room -= len(prompt) + len(answer)
    if len(kept) < 2:
        raise DataError(
            f"the memory needs at least two texts of two tokens, got {len(kept)} within "
            f"memory_tokens={tokens}; give more text or a larger budget"
        )
    return kept


def _pairs(prompts: PromptEncoder, texts: Iterable[str]) -> Iterator[tuple[str, tuple[Ids, Ids]]]:
    """Cut the beginning of each text into a prompt and its answer, and tokenise both."""
    for text in texts:
        beginning = _beginning(prompts.tokenizer, text).strip()
        prompt, _, answer = beginning.rpartition(" ")
        if not prompt:
            half = len(beginning) // 2
            prompt, answer = beginning[:half], beginning[half:]
        if not prompt:
            continue
        separator = " " if beginning == f"{prompt} {answer}" else ""
        try:
            (encoded,) = prompts.encode([PromptText(prompt, answer, None, separator)])
        except ValueError as error:
            raise DataError(f"a text of the memory, {text[:40]!r}: {error}") from error
        yield text, (encoded.prompt, encoded.answer)


def _tokenised(
    prompts: PromptEncoder, texts: Iterable[str]
) -> Iterator[tuple[str, tuple[Ids, Ids]]]:
    for text in texts:
        if prompts.form.chat:
            try:
                (encoded,) = prompts.encode([PromptText(_beginning(prompts.tokenizer, text))])
            except ValueError as error:
                raise DataError(f"a text of the memory, {text[:40]!r}: {error}") from error
            ids = encoded.prompt
        else:
            longest = min(_LONGEST, prompts.limits.positions or _LONGEST)
            ids = prompts.running(text, longest)
        if len(ids) > 1:
            yield text, (ids, ())


def _beginning(tokenizer: Any, text: str) -> str:
    """Return the part of a text that its first tokens cover."""
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )  # fmt: skip
    covered = encoded["offset_mapping"][:_LONGEST]
    return text[: covered[-1][1]] if covered else text
