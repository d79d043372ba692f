"""Greedy continuations of prompts: what a teacher-forced pass already tells, then the model's loop.

Where the model's choice agrees with a given answer token by token, greedy decoding would have
written that answer, and the pass that scored it has the next token too. Only continuations that
leave the given answers, or go on after them, are generated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from lightning_edit.functional.padding import pad
from lightning_edit.functional.text import first_line
from lightning_edit.functional.tokens import length_sorted

Ids = tuple[int, ...]
#: What a continuation starts from, and how many tokens it may have.
Prompt = tuple[Ids, int]

#: Limits are rounded up to multiples of this, so that rows of similar limits share a batch.
LIMIT_STEP = 8
#: Tokens written at first to all prompts, and then to those that go on.
_BURSTS = (4,)
#: Settings with which a model's own loop does not always write its likeliest token.
_CHANGING = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "guidance_scale",
)


@dataclass(frozen=True)
class PartialContinuation:
    """A continuation of which some tokens are known.

    Args:
        tokens: The first tokens.
        done: Whether nothing follows them.
    """

    tokens: Ids = ()
    done: bool = False


def follow(answer: Sequence[int], chosen: Sequence[int]) -> Ids:
    """Return what greedy decoding writes as far as a forced pass tells.

    Args:
        answer: The tokens that were given.
        chosen: The model's choice at each of them, and after the last one.
    """
    agreed = len(
        list(takewhile(lambda pair: pair[0] == pair[1], zip(answer, chosen, strict=False)))
    )
    return tuple(chosen[: agreed + 1])


class GreedyGenerator:
    """Writes greedy continuations with one language model.

    Args:
        model: A Hugging Face language model in evaluation mode.
        tokenizer: Its tokenizer.
        batch_size: Rows that go through the model together.
        room: Positions of the model; ``None`` where they are not limited.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, batch_size: int, room: int | None) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.room = room
        self.ends = _end_tokens(model, tokenizer)

    @property
    def is_plain(self) -> bool:
        """Whether the model's loop always writes its likeliest token, so that `follow` is right."""
        settings = self.model.generation_config
        return not any(getattr(settings, name, None) for name in _CHANGING)

    def begun(self, tokens: Ids, limit: int) -> PartialContinuation:
        """Say whether a beginning is all there is.

        Args:
            tokens: First tokens of a continuation.
            limit: Most tokens it may have.
        """
        kept = tuple(takewhile(lambda token: token not in self.ends, tokens[:limit]))
        done = (
            len(kept) < min(len(tokens), limit)
            or len(kept) == limit
            or "\n" in self._text(kept).strip()
        )
        return PartialContinuation(kept, done)

    def texts(self, known: Mapping[Prompt, PartialContinuation]) -> dict[Prompt, str]:
        """Return each prompt's continuation up to its natural stop.

        Args:
            known: By prompt, what is known of its continuation.
        """
        begun = dict(known)
        # A decoder's continuation can be taken up where it was left; most end within few tokens.
        for burst in () if self._two_stacks else _BURSTS:
            begun |= self._on(begun, burst)
        begun |= self._on(begun, None)
        return {one: first_line(self._text(found.tokens)) for one, found in begun.items()}

    @property
    def _two_stacks(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    def _on(
        self, begun: Mapping[Prompt, PartialContinuation], burst: int | None
    ) -> dict[Prompt, PartialContinuation]:
        """Generate up to so many tokens of what is not done; ``None``: up to each limit."""
        rest: dict[int, list[Prompt]] = {}
        for one, found in sorted(begun.items(), key=lambda item: item[0]):
            if not found.done:
                limit = self._limit(one, found) if burst is None else burst
                rest.setdefault(limit, []).append(one)
        more = {}
        for limit, prompts in rest.items():
            starts = [one[0] + begun[one].tokens for one in prompts]
            for numbers in length_sorted([len(start) for start in starts], self.batch_size):
                new = self._generate([starts[number] for number in numbers], limit)
                for number, tokens in zip(numbers, new, strict=True):
                    one = prompts[number]
                    more[one] = self.begun((*begun[one].tokens, *tokens), one[1])
        return more

    def _limit(self, prompt: Prompt, begun: PartialContinuation) -> int:
        """Return how many more tokens are generated; what exceeds the limit is cut off later."""
        left = prompt[1] - len(begun.tokens)
        rounded = -(-left // LIMIT_STEP) * LIMIT_STEP
        taken = len(prompt[0]) + len(begun.tokens)
        return left if self.room is not None and taken + rounded > self.room else rounded

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _generate(self, batch: Sequence[Ids], limit: int) -> list[list[int]]:
        """Generate greedily; returns new tokens only, an end token and what follows included."""
        ids, mask = pad(batch, left=not self._two_stacks)
        start = 1 if self._two_stacks else ids.shape[1]
        # A model that is spread over devices takes its ids where the embedding lies.
        device = self.model.get_input_embeddings().weight.device
        # BART's settings force an end token at the limit; one more token keeps it out of the text.
        closes = int(self.model.generation_config.forced_eos_token_id is not None)
        # The model's own generation settings may penalise or forbid tokens; greedy means greedy.
        output = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=limit + closes,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            eos_token_id=self.ends or None,
            pad_token_id=self.ends[0] if self.ends else 0,
            stopping_criteria=StoppingCriteriaList([_LineEnd(self.tokenizer, start)]),
        ).tolist()
        return [row[start : start + limit] for row in output]


class _LineEnd(StoppingCriteria):
    """Ends a row when its line has ended: nothing after that is read."""

    def __init__(self, tokenizer: Any, start: int) -> None:
        self.tokenizer = tokenizer
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Any, **rest: Any) -> Tensor:
        new = input_ids[:, self.start :].tolist()
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        done = ["\n" in text.strip() for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a text, by the model's settings or the tokenizer's."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return sorted({token for token in [*listed, tokenizer.eos_token_id] if token is not None})
