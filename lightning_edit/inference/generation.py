"""Greedy generation of continuations, started from tokens that a teacher-forced pass gave.

Where the argmax agrees with a given answer token by token, greedy decoding would have generated
that answer, and the pass that scored it also gives the next token. Only continuations that diverge
from the given answers, or continue after them, are generated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.functional.padding import pad
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.answer_pass import PassObserver, unobserved
from lightning_edit.inference.encoded_prompts import EncodedPrompts
from lightning_edit.inference.model_call import calls_of
from lightning_edit.inference.pass_layout import hooked_modules
from lightning_edit.inference.prefix_cache import SharedPrefixes
from lightning_edit.models.prompt_encoder import Ids, PromptEncoder

#: Token ids of a prompt, and the token limit of its continuation.
Prompt = tuple[Ids, int]

#: Models stop answering at a line break.
LINE_BREAK = ("\n",)
#: Settings of a model's own `generation_config` that would not decode greedily, or not whole texts,
#: and what they are instead.
_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys((
        "assistant_early_exit", "constraints", "dola_layers", "exponential_decay_length_penalty",
        "force_words_ids", "max_time", "penalty_alpha", "prefill_chunk_size",
        "prompt_lookup_num_tokens", "stop_strings", "watermarking_config",
    )),
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
    "token_healing": False,
}  # fmt: skip
#: Limits are rounded up to multiples of this, so that rows of similar limits share a batch.
LIMIT_STEP = 8
#: New tokens after which complete continuations leave their batch: most end within a few tokens.
_BURST = 4
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


def neutral_settings(model: Any) -> dict[str, Any]:
    """Return arguments of `generate` in place of a model's own settings that would bend a text.

    Args:
        model: A Hugging Face model.

    Returns:
        By name, those settings alone that the model has set.
    """
    own = model.generation_config
    return {
        name: value
        for name, value in _NEUTRAL.items()
        if getattr(own, name, None) not in (None, value)
    }


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
        rows_may_leave: Whether rows may leave a batch whose prompts are read; not with edits that
            decide once a prompt and keep the decisions by row.
        encoded: Prompts that are shared with other calls, of two stacks; ``None``: each batch reads
            its own.
        long_prefixes: Whether long prefixes that prompts of a decoder share are computed once; not
            where rows may not leave, nor with hooks on the model, which may expect whole prompts.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: PromptEncoder,
        batch_size: int,
        stop: Sequence[str] = LINE_BREAK,
        observer: PassObserver = unobserved,
        ranks: OneProcess = ALONE,
        rows_may_leave: bool = True,
        encoded: EncodedPrompts | None = None,
        long_prefixes: bool = False,
    ) -> None:
        self.model: Any = model
        self.encoded = encoded
        # `generate` goes on from a given cache only where its settings name no kind of cache; a
        # model that only scores may have no settings.
        settings = getattr(model, "generation_config", None)
        free = getattr(settings, "cache_implementation", None) is None
        self.rows_may_leave = rows_may_leave and free and calls_of(model) is None
        self.long_prefixes = long_prefixes and self.rows_may_leave and not hooked_modules(model)
        self.ranks = ranks
        self.prompts = prompts
        self.batch_size = batch_size
        self.stop = tuple(stop)
        self.observer = observer
        self.room = prompts.limits.positions
        self.decoder_room = prompts.limits.decoder
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
        # A decoder's continuation can be resumed later.
        if not self._is_encoder_decoder:
            begun |= self._extend(begun, _BURST)
        begun |= self._extend(begun, None)
        return {one: until(self._text(found.tokens), self.stop) for one, found in begun.items()}

    @property
    def _is_encoder_decoder(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    def _extend(
        self, begun: Mapping[Prompt, PartialContinuation], burst: int | None
    ) -> dict[Prompt, PartialContinuation]:
        """Extend unfinished continuations, in batches of similar length.

        Args:
            begun: Continuations.
            burst: Tokens after which rows leave their batch: they come back complete where the
                batch can go on without them, else with so many tokens. ``None``: all rows stay, to
                each limit.
        """
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
            return self._generate([_Row(one, begun[one].tokens) for one in prompts], limit, burst)

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

    def _generate(self, rows: Sequence["_Row"], limit: int, burst: int | None) -> list[list[int]]:
        """Return new tokens of each row, an end token and what follows it included.

        Args:
            rows: Rows of a batch.
            limit: New tokens of the first call.
            burst: New tokens of later calls, which go on with the KV cache of the first, without
                the rows that are complete; ``None``: there are none.
        """
        ids, mask = pad([row.tokens for row in rows], left=not self._is_encoder_decoder)
        shift = [0 if self._is_encoder_decoder else ids.shape[1] - len(row.tokens) for row in rows]
        ends = [begin + len(row.prompt[0]) - 1 for begin, row in zip(shift, rows, strict=True)]
        with self.observer(ends):
            cache = self._call(rows, ids, mask, limit, self._read_prefixes(rows))
        going = list(rows)
        while burst is not None and self.rows_may_leave and _may_lose_rows(cache):
            places = [place for place, row in enumerate(going) if not self._is_complete(row)]
            if not places:
                break
            cache.batch_select_indices(torch.tensor(places, device=self._device))
            going = [going[place] for place in places]
            # All end where their cache does; what padding is left of them stays.
            ids, mask = pad([row.tokens for row in going], left=True)
            missing = cache.get_seq_length() + 1 - ids.shape[1]
            ids, mask = (nn.functional.pad(one, (missing, 0)) for one in (ids, mask))
            left = max(row.prompt[1] - len(row.known) - len(row.new) for row in going)
            cache = self._call(going, ids, mask, min(burst, left), cache)
        return [row.new for row in rows]

    def _read_prefixes(self, rows: Sequence["_Row"]) -> DynamicCache | None:
        """Return a KV cache of what the rows share at their beginning, if that is most of them."""
        if not self.long_prefixes or self._is_encoder_decoder:
            return None
        shared = SharedPrefixes.of([row.tokens for row in rows])
        return shared.read(self.model) if shared is not None and shared.fit(self.model) else None

    def _is_complete(self, row: "_Row") -> bool:
        return self.begun((*row.known, *row.new), row.prompt[1]).done

    @property
    def _device(self) -> torch.device:
        # A model sharded over devices expects its ids on the embedding's device.
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def _call(
        self, rows: Sequence["_Row"], ids: Tensor, mask: Tensor, limit: int, cache: Any
    ) -> Any:
        """Run greedy `generate`, and add its tokens to the rows.

        Args:
            rows: Rows of a batch.
            ids: Their tokens so far, padded.
            mask: Attention mask of the tokens.
            limit: New tokens.
            cache: KV cache of the first columns, at most of all but the last; ``None``: nothing is
                known of them.

        Returns:
            The cache, of all tokens but the last new one.
        """
        if self.room is not None and not self._is_encoder_decoder:
            # A row that needs less than the others may end with the model's positions.
            limit = min(limit, self.room - max(len(row.tokens) for row in rows))
        settings = self.model.generation_config
        # Of two stacks the decoder has its start token, and BART's large models a BOS behind it.
        forced = int(self._is_encoder_decoder and settings.forced_bos_token_id is not None)
        start = 1 + forced if self._is_encoder_decoder else ids.shape[1]
        # BART's settings force an end token at the limit; one more token keeps it out of the text.
        closes = int(settings.forced_eos_token_id is not None)
        if self._is_encoder_decoder and self.decoder_room is not None:
            # The start token has a position, the last new token needs none.
            limit = min(limit, self.decoder_room - forced - closes)
        # The model's generation settings may penalise or forbid tokens, or with a least length (as
        # BART's for summaries have) the end of an answer; greedy decoding must not.
        stopping = StoppingCriteriaList([_StopAtTexts(self.prompts, self.stop, start)])
        read = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
        if self.encoded is not None:
            read |= self.encoded.inputs([row.tokens for row in rows])
        output = self.model.generate(
            **read,
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
            return_dict_in_generate=True,
            **({} if cache is None else {"past_key_values": cache}),
            **neutral_settings(self.model),
        )
        for row, tokens in zip(rows, output.sequences.tolist(), strict=True):
            row.new += tokens[start : start + limit]
        return getattr(output, "past_key_values", None)


@dataclass
class _Row:
    """A row of a batch: a prompt, what is known of its continuation, and what was generated."""

    prompt: Prompt
    known: Ids
    new: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> Ids:
        """Everything so far."""
        return (*self.prompt[0], *self.known, *self.new)


def _may_lose_rows(cache: Any) -> bool:
    """Return whether a KV cache is keys and values by row and nothing else."""
    if type(cache) is not DynamicCache:
        return False
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in plain for layer in cache.layers)


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
