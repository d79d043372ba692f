"""Greedy generation of continuations, started from tokens that a teacher-forced pass gave.

Where the argmax agrees with a given answer token by token, greedy decoding would have generated
that answer, and the pass that scored it also gives the next token. Only continuations that diverge
from the given answers, or continue after them, are generated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.functional.padding import pad
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.answer_pass import PassObserver, unobserved
from lightning_edit.models.prompt_encoder import Ids, PromptEncoder

#: Token ids of a prompt, and the token limit of its continuation.
Prompt = tuple[Ids, int]

#: Models stop answering at a line break.
LINE_BREAK = ("\n",)
#: Limits are rounded up to multiples of this, so that rows of similar limits share a batch.
LIMIT_STEP = 8
#: Token limits of the first rounds; later rounds take only unfinished continuations.
_BURSTS = (4,)
#: Generation settings with which `generate` does not always pick the argmax token.
_NON_GREEDY_SETTINGS = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
)


@dataclass(frozen=True)
class PartialContinuation:
    """Known first tokens of a greedy continuation, and whether it is complete.

    Args:
        tokens: The first tokens.
        done: Whether the continuation ends after them.
    """

    tokens: Ids = ()
    done: bool = False


def follow(answer: Sequence[int], chosen: Sequence[int]) -> Ids:
    """Return the greedy tokens that a teacher-forced pass determines.

    Args:
        answer: The teacher-forced tokens.
        chosen: The argmax token at each of them, and after the last one.
    """
    agreed = len(
        list(takewhile(lambda pair: pair[0] == pair[1], zip(answer, chosen, strict=False)))
    )
    return tuple(chosen[: agreed + 1])


class GreedyGenerator:
    """Greedy generation with a KV cache, started from the teacher-forced pass.

    Args:
        model: A Hugging Face language model in evaluation mode.
        prompts: Its prompt encoder.
        batch_size: Rows per forward pass.
        stop: Texts before which a continuation is cut; white space before its first word is no
            part of it.
        observer: Told before each pass where its prompts end.
        ranks: The processes that generate together; each takes whole batches.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: PromptEncoder,
        batch_size: int,
        stop: Sequence[str] = LINE_BREAK,
        observer: PassObserver = unobserved,
        ranks: OneProcess = ALONE,
    ) -> None:
        self.model: Any = model
        self.ranks = ranks
        self.prompts = prompts
        self.batch_size = batch_size
        self.stop = tuple(stop)
        self.observer = observer
        self.room = prompts.limits.positions
        self.ends = prompts.end_tokens(model)

    @property
    def is_plain(self) -> bool:
        """Whether `generate` always picks the argmax token, as :func:`follow` assumes."""
        settings = self.model.generation_config
        return not any(getattr(settings, name, None) for name in _NON_GREEDY_SETTINGS)

    def begun(self, tokens: Ids, limit: int) -> PartialContinuation:
        """Truncate first tokens at an end token or the limit, and check whether generation is done.

        Args:
            tokens: First tokens of a continuation.
            limit: Maximum number of its tokens.
        """
        kept = tuple(takewhile(lambda token: token not in self.ends, tokens[:limit]))
        done = (
            len(kept) < min(len(tokens), limit)
            or len(kept) == limit
            or stops(self._text(kept), self.stop)
        )
        return PartialContinuation(kept, done)

    def texts(self, known: Mapping[Prompt, PartialContinuation]) -> dict[Prompt, str]:
        """Generate each prompt's greedy continuation, up to an end token, line break or limit.

        Args:
            known: Known first tokens of each prompt's continuation.
        """
        begun = dict(known)
        # A decoder's continuation can be resumed later; most end within a few tokens.
        for burst in () if self._is_encoder_decoder else _BURSTS:
            begun |= self._extend(begun, burst)
        begun |= self._extend(begun, None)
        return {one: until(self._text(found.tokens), self.stop) for one, found in begun.items()}

    @property
    def _is_encoder_decoder(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    def _extend(
        self, begun: Mapping[Prompt, PartialContinuation], burst: int | None
    ) -> dict[Prompt, PartialContinuation]:
        """Extend unfinished continuations by up to ``burst`` tokens; ``None``: to each limit."""
        rest: dict[int, list[Prompt]] = {}
        for one, found in sorted(begun.items(), key=lambda item: item[0]):
            if not found.done:
                limit = self._limit(one, found) if burst is None else burst
                rest.setdefault(limit, []).append(one)
        batches: list[tuple[int, list[Prompt]]] = []
        for limit, prompts in rest.items():
            lengths = [len(one[0] + begun[one].tokens) for one in prompts]
            batches += [
                (limit, [prompts[number] for number in numbers])
                for numbers in length_sorted(lengths, self.batch_size)
            ]

        def generate(batch: tuple[int, list[Prompt]]) -> list[list[int]]:
            limit, prompts = batch
            starts = [one[0] + begun[one].tokens for one in prompts]
            return self._generate(starts, [len(one[0]) for one in prompts], limit)

        more = {}
        for (_, prompts), new in zip(batches, self.ranks.deal(batches, generate), strict=True):
            for one, tokens in zip(prompts, new, strict=True):
                more[one] = self.begun((*begun[one].tokens, *tokens), one[1])
        return more

    def _limit(self, prompt: Prompt, begun: PartialContinuation) -> int:
        """Return the number of new tokens to generate; the excess over the limit is cut later."""
        left = prompt[1] - len(begun.tokens)
        rounded = -(-left // LIMIT_STEP) * LIMIT_STEP
        taken = len(prompt[0]) + len(begun.tokens)
        return left if self.room is not None and taken + rounded > self.room else rounded

    def _text(self, tokens: Sequence[int]) -> str:
        return self.prompts.decode(tokens)

    def _generate(
        self, batch: Sequence[Ids], prompts: Sequence[int], limit: int
    ) -> list[list[int]]:
        """Run greedy `generate`; return new tokens, an end token and what follows it included.

        Args:
            batch: Prompts with the tokens that are known of their continuations.
            prompts: Tokens of each prompt alone.
            limit: New tokens.
        """
        ids, mask = pad(batch, left=not self._is_encoder_decoder)
        shift = [0 if self._is_encoder_decoder else ids.shape[1] - len(row) for row in batch]
        ends = [begin + size - 1 for begin, size in zip(shift, prompts, strict=True)]
        settings = self.model.generation_config
        # Of two stacks the decoder has its start token, and BART's large models a BOS behind it.
        forced = int(self._is_encoder_decoder and settings.forced_bos_token_id is not None)
        start = 1 + forced if self._is_encoder_decoder else ids.shape[1]
        # A model sharded over devices expects its ids on the embedding's device.
        device = self.model.get_input_embeddings().weight.device
        # BART's settings force an end token at the limit; one more token keeps it out of the text.
        closes = int(settings.forced_eos_token_id is not None)
        # The model's generation settings may penalise or forbid tokens, or with a least length (as
        # BART's for summaries have) the end of an answer; greedy decoding must not.
        stopping = StoppingCriteriaList([_StopAtTexts(self.prompts, self.stop, start)])
        with self.observer(ends):
            output = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=limit + forced + closes,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                min_length=0,
                min_new_tokens=None,
                use_cache=True,
                eos_token_id=self.ends or None,
                pad_token_id=self.ends[0] if self.ends else 0,
                stopping_criteria=stopping,
            ).tolist()
        return [row[start : start + limit] for row in output]


class _StopAtTexts(StoppingCriteria):
    """Stopping criterion at the first stop text of a row: nothing after it is read."""

    def __init__(self, prompts: PromptEncoder, stop: Sequence[str], start: int) -> None:
        self.prompts = prompts
        self.stop = stop
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Any, **rest: Any) -> Tensor:
        new = input_ids[:, self.start :].tolist()
        texts = self.prompts.tokenizer.batch_decode(new, skip_special_tokens=True)
        return torch.tensor([stops(text, self.stop) for text in texts], device=input_ids.device)


def stops(text: str, stop: Sequence[str]) -> bool:
    """Return whether a continuation holds a stop text.

    Args:
        text: Generated text; white space around it does not count.
        stop: The stop texts.
    """
    kept = text.strip()
    return any(one in kept for one in stop)


def until(text: str, stop: Sequence[str]) -> str:
    r"""Return a continuation up to its first stop text, without white space around it.

    Args:
        text: Generated text.
        stop: The stop texts.

    Example:
        >>> until(" Paris.\nIt lies", ["\n"])
        'Paris.'
    """
    kept = text.strip()
    places = [place for one in stop if (place := kept.find(one)) >= 0]
    return kept[: min(places, default=len(kept))].strip()
