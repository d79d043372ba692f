"""Prompt encoder: token ids of prompts and answers, and of the subject inside a prompt.

Prompt and answer are tokenised *together*: tokenizers join the blank before a word to it, and
tokenising them separately gives ids that the model never sees in running text.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from lightning_edit.exceptions import ConfigError
from lightning_edit.models.prompt_format import (
    PromptFormat,
    RenderedPrompt,
    end_of_turn,
    render_chat,
    render_plain,
)

Ids = tuple[int, ...]
_Result = TypeVar("_Result")
#: Encoded texts that are kept, so that nothing is tokenised twice on the way of a fact.
_KEPT = 1 << 16


class PromptText(NamedTuple):
    """A prompt to encode, alone or with its answer.

    Args:
        prompt: Text before the answer.
        answer: The answer; ``None``: the prompt alone.
        subject: Character offsets of the subject's begin and end in the prompt.
        separator: Text between prompt and answer, in place of the form's.
        verbatim: Whether a BOS that the text begins with stands beside the tokenizer's own, as in
            the context templates of published code; otherwise it stands once.
    """

    prompt: str
    answer: str | None = None
    subject: tuple[int, int] | None = None
    separator: str | None = None
    verbatim: bool = False


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt and its answer.

    Args:
        prompt: The prompt's ids, with a BOS where the tokenizer adds one. A token that covers text
            of prompt and answer belongs to the answer.
        answer: The answer's ids, without an EOS; empty for a prompt alone.
        subject_first: Index of the first token of the subject; ``None`` without one.
        subject_last: Index of the *last* token that covers its last character: in many scripts a
            character is several tokens.
    """

    prompt: Ids
    answer: Ids = ()
    subject_first: int | None = None
    subject_last: int | None = None


@dataclass(frozen=True)
class Limits:
    """What a language model can read.

    Args:
        positions: Longest text in tokens, prompt and answer together; ``None``: no limit, as with
            two stacks.
        vocabulary: Rows of its embedding; ``None``: not known.
        encoder: With two stacks, the longest prompt in tokens; ``None``: no limit (T5).
        decoder: With two stacks, the longest answer in tokens; ``None``: no limit (T5).
    """

    positions: int | None = None
    vocabulary: int | None = None
    encoder: int | None = None
    decoder: int | None = None


class PromptEncoder:
    """Tokenisation of prompts and answers for one language model.

    Everything that asks or edits a model tokenises through one of these. Where a function takes a
    tokenizer, it takes a prompt encoder as well; a bare tokenizer stands for plain text.

    Args:
        tokenizer: A fast Hugging Face tokenizer, of any padding side.
        form: How prompts are rendered; ``None``: plain text.
        limits: What the model can read; see :meth:`for_model`.
        two_stacks: Whether an encoder reads the prompt and a decoder the answer. Then the prompt
            keeps the EOS that its tokenizer adds.

    Raises:
        TypeError: If the tokenizer gives no character offsets.
    """

    def __init__(
        self,
        tokenizer: Any,
        form: PromptFormat | None = None,
        limits: Limits | None = None,
        two_stacks: bool = False,
    ) -> None:
        if not tokenizer.is_fast:
            raise TypeError(
                f"{type(tokenizer).__name__} is a slow tokenizer without character offsets; "
                "load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
            )
        self.tokenizer = tokenizer
        self.form = PromptFormat() if form is None else form
        self.limits = Limits() if limits is None else limits
        self.two_stacks = two_stacks
        self._known: OrderedDict[PromptText, EncodedPrompt | ValueError] = OrderedDict()
        self._plain: PromptEncoder | None = None

    @classmethod
    def of(cls, tokenizer: Any) -> "PromptEncoder":
        """Return a prompt encoder as it is, or one for plain text with a bare tokenizer.

        Args:
            tokenizer: A fast tokenizer or a prompt encoder.
        """
        return tokenizer if isinstance(tokenizer, PromptEncoder) else cls(tokenizer)

    @classmethod
    def for_model(cls, model: Any, tokenizer: Any) -> "PromptEncoder":
        """Return an encoder that knows a model's limits.

        Args:
            model: A Hugging Face language model.
            tokenizer: Its fast tokenizer, or a prompt encoder whose format is kept.
        """
        two = bool(model.config.is_encoder_decoder)
        table = model.get_input_embeddings()
        rows = getattr(table, "num_embeddings", None)
        room = max_positions(model)
        limits = Limits(None, rows, room, room) if two else Limits(room, rows)
        if not isinstance(tokenizer, PromptEncoder):
            return cls(tokenizer, limits=limits, two_stacks=two)
        if (tokenizer.limits, tokenizer.two_stacks) == (limits, two):
            return tokenizer
        return cls(tokenizer.tokenizer, tokenizer.form, limits, two)

    @property
    def forms(self) -> "tuple[PromptEncoder, ...]":
        """The forms in which an edit is written: this one, and with ``chat="both"`` plain text."""
        if self.form.chat != "both":
            return (self,)
        if self._plain is None:
            form = PromptFormat(separator=self.form.separator, end_answers=self.form.end_answers)
            self._plain = PromptEncoder(self.tokenizer, form, self.limits, self.two_stacks)
        return self, self._plain

    def encode(self, texts: Iterable[PromptText]) -> Iterator[EncodedPrompt]:
        """Tokenise prompts, with their answers.

        Args:
            texts: The prompts.

        Yields:
            The ids of each, in order.

        Raises:
            ValueError: On reaching a text that cannot be encoded: an answer without a token of its
                own, a subject that no token covers, more tokens than the model takes, or a token
                that the model's embedding does not have.
        """
        listed = list(texts)
        found: dict[PromptText, EncodedPrompt | ValueError] = {}
        for text in listed:
            if text in self._known:
                self._known.move_to_end(text)
                found[text] = self._known[text]
        new = [text for text in dict.fromkeys(listed) if text not in found]
        for text, encoded in zip(new, self._encode(new), strict=True):
            found[text] = self._known[text] = encoded
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        for text in listed:
            encoded = found[text]
            if isinstance(encoded, ValueError):
                raise ValueError(*encoded.args)
            yield encoded

    def prompts(self, prompts: Iterable[str]) -> list[Ids]:
        """Tokenise prompts alone, for generation; see :meth:`encode`.

        Args:
            prompts: The prompts.
        """
        return [one.prompt for one in self.encode(PromptText(prompt) for prompt in prompts)]

    def pairs(self, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[Ids, Ids]]:
        """Tokenise prompts with their answers; see :meth:`encode`.

        Args:
            pairs: Prompts and answers.

        Yields:
            The ids of each prompt and of its answer.
        """
        for one in self.encode(PromptText(*pair) for pair in pairs):
            yield one.prompt, one.answer

    def lead(self, text: str) -> Ids:
        """Tokenise the beginning of prompts, as far as it is the same whatever follows.

        Args:
            text: The first words of prompts; may be empty.

        Returns:
            Token ids that prompts of this beginning may share; their last tokens may differ.
        """
        if self.form.chat:
            opened = render_chat(self.tokenizer, text or "-", None, self.form)
            text = opened.text[: opened.shift] + text
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return tuple(self.tokenizer(text, verbose=False)["input_ids"])

    def running(self, text: str, max_tokens: int | None = None) -> Ids:
        """Tokenise running text as it is, without a chat template or an EOS.

        Args:
            text: The text.
            max_tokens: Most tokens that are kept; ``None``: all.
        """
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return tuple(ids[:max_tokens])

    def end_tokens(self, model: Any) -> list[int]:
        """Return the tokens at which a generation ends, the end of a chat's turn included.

        Args:
            model: A Hugging Face language model.
        """
        own = model.generation_config.eos_token_id
        ends = {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id}
        ends.add(self._turn_end())
        return sorted(token for token in ends if token is not None)

    def answer_end(self) -> int:
        """Return the token that ends an answer: a chat's end of turn, else EOS.

        Raises:
            ConfigError: If the tokenizer has none.
        """
        end = self._own_end()
        if end is None:
            raise ConfigError(
                f"{type(self.tokenizer).__name__} has no EOS token, so an answer has no end to "
                "learn; set tokenizer.eos_token, or leave the end out (end_answers=False, of "
                "LocFT-BF end_token=False)"
            )
        return end

    def learnt(self, answer: Ids) -> Ids:
        """Return the tokens that an edit writes: the answer, with its end where the format says so.

        Args:
            answer: Token ids of the answer.

        Raises:
            ConfigError: If the tokenizer has no token for an end.
        """
        return (*answer, self.answer_end()) if self.form.end_answers and answer else answer

    def labels(self, model: Any, answer: Ids) -> Ids:
        """Return the tokens that an answer is learnt as: with two stacks its EOS belongs to them.

        A decoder of two stacks writes the answer and nothing else, and the labels of T5 and BART
        end with EOS. With one stack an answer stands in running text, and is learnt without an end.

        Args:
            model: The language model.
            answer: Token ids of the answer.
        """
        if not self.two_stacks:
            return answer
        own = self._own_end()
        # A tokenizer may lack an EOS that the model has.
        end = tuple(self.end_tokens(model)[:1]) if own is None else (own,)
        return answer if answer[-1:] == end else (*answer, *end)

    def _own_end(self) -> int | None:
        """Return a chat's end of turn, else the tokenizer's EOS; ``None`` where it has none."""
        turn = self._turn_end()
        eos: int | None = self.tokenizer.eos_token_id
        return eos if turn is None else turn

    def _turn_end(self) -> int | None:
        """Return the special token that ends a chat's turn; ``None`` where there is none."""
        if not self.form.chat:
            return None
        text = end_of_turn(self.tokenizer, self.form)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        known = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return ids[0] if ids and ids[0] in known else None

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens, without special tokens.

        Args:
            tokens: Token ids.
        """
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    # ------------------------------------------------------------------------------------ pieces

    def _encode(self, texts: Sequence[PromptText]) -> list[EncodedPrompt | ValueError]:
        rendered = [_caught(self._render, text) for text in texts]
        found: dict[int, EncodedPrompt | ValueError] = {
            number: one for number, one in enumerate(rendered) if isinstance(one, ValueError)
        }
        for special in (False, True):
            group = [
                (number, one)
                for number, one in enumerate(rendered)
                if isinstance(one, RenderedPrompt) and one.special == special
            ]
            if not group:
                continue
            encoded = self.tokenizer(
                [one.text for _, one in group],
                add_special_tokens=not special,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                return_attention_mask=False,
                verbose=False,
            )
            columns = (encoded["input_ids"], encoded["offset_mapping"])
            masks = encoded["special_tokens_mask"]
            for (number, one), ids, offsets, mask in zip(group, *columns, masks, strict=True):
                tokens = [
                    (token, start, end, bool(added) and start == end)
                    for token, (start, end), added in zip(ids, offsets, mask, strict=True)
                ]
                found[number] = _caught(self._split, texts[number], one, tokens)
        return [found[number] for number in range(len(texts))]

    def _render(self, text: PromptText) -> RenderedPrompt:
        if self.form.chat:
            return render_chat(self.tokenizer, text.prompt, text.answer, self.form)
        separator = self.form.separator if text.separator is None else text.separator
        markers = tuple(self.tokenizer.all_special_tokens)
        return render_plain(text.prompt, text.answer, separator, markers)

    def _split(
        self,
        text: PromptText,
        rendered: RenderedPrompt,
        tokens: list[tuple[int, int, int, bool]],
    ) -> EncodedPrompt:
        # A tokenizer that adds its BOS to a text that begins with one would write it twice.
        twice = len(tokens) > 1 and tokens[0][3] and tokens[0][0] == tokens[1][0]
        if twice and not text.verbatim:
            tokens = tokens[1:]
        if not self.two_stacks or text.answer is not None:
            # An EOS would be read as the end of the text; an encoder expects one after a prompt.
            while len(tokens) > 1 and tokens[-1][3]:
                tokens = tokens[:-1]
        cut = len(tokens)
        if text.answer is not None:
            cut = self._answer_begin(text, rendered, [(s, e) for _, s, e, _ in tokens])
            if cut == 0 and not self.two_stacks:
                raise ValueError(
                    f"the prompt {text.prompt!r} merges with its answer's first token, so the "
                    "answer has no context; make the prompt longer"
                )
        numbers = tuple(token for token, *_ in tokens)
        # With two stacks the answer is the decoder's, and the prompt is checked by itself below.
        apart = self.two_stacks and text.answer is not None
        self._check_limits(text, numbers, len(numbers) - cut if apart else len(numbers))
        first, last = self._subject(text, rendered, [(i, s, e) for i, s, e, _ in tokens], cut)
        prompt = numbers[:cut]
        if apart:
            (alone,) = self.encode([text._replace(answer=None, subject=None)])
            prompt = alone.prompt
        return EncodedPrompt(prompt, numbers[cut:], first, last)

    def _answer_begin(
        self, text: PromptText, rendered: RenderedPrompt, offsets: list[tuple[int, int]]
    ) -> int:
        begin = rendered.answer_start
        first = next((i for i, (start, end) in enumerate(offsets) if end > max(begin, start)), None)
        if first is None or not (text.answer or "").strip():
            raise ValueError(
                f"the answer {text.answer!r} has no token after the prompt {text.prompt!r}; "
                "give it text"
            )
        # A token of the blank between prompt and answer is the answer's: the model must produce it.
        while first > 0 and rendered.prompt_end <= offsets[first - 1][0] < offsets[first - 1][1]:
            first -= 1
        # Offsets may be trimmed to nothing there; between two stacks the blank would be lost.
        blank = rendered.prompt_end < begin and self.two_stacks
        while blank and first > 0 and offsets[first - 1] == (begin, begin):
            first -= 1
        return first

    def _subject(
        self,
        text: PromptText,
        rendered: RenderedPrompt,
        tokens: list[tuple[int, int, int]],
        prompt_tokens: int,
    ) -> tuple[int | None, int | None]:
        if text.subject is None:
            return None, None
        begin, end = (place + rendered.shift for place in text.subject)
        covering = [
            [i for i, (_, start, stop) in enumerate(tokens) if start <= place < stop]
            or self._behind_inserted_blank(rendered.text[place], place, tokens)
            for place in (begin, end - 1)
        ]
        if not covering[0] or not covering[1]:
            subject = text.prompt[slice(*text.subject)]
            raise ValueError(
                f"no token of {text.prompt!r} covers the whole subject {subject!r}; the tokenizer "
                "drops a part of it, so the subject cannot be located"
            )
        first, last = covering[0][0], covering[1][-1]
        if last >= prompt_tokens and not self.two_stacks:
            raise ValueError(
                f"the subject's last token in {text.prompt!r} merges with the answer "
                f"{text.answer!r}; put text between them"
            )
        return first, last

    def _behind_inserted_blank(
        self, character: str, place: int, tokens: list[tuple[int, int, int]]
    ) -> list[int]:
        """Return the token of a character that its offsets leave out; empty if there is none.

        Behind a special token some tokenizers put a blank in front of a word, and then take the
        word's first character for that blank.
        """
        return [
            number
            for number, (token, start, _) in enumerate(tokens)
            if start == place + 1 and self.decode([token]).lstrip().startswith(character)
        ][:1]

    def _check_limits(self, text: PromptText, ids: Ids, length: int) -> None:
        limits, rows = self.limits, self.limits.vocabulary
        if not self.two_stacks:
            room, what, reader, remedy = (
                limits.positions, "the prompt {} and its answer have", "model", "prompt"
            )  # fmt: skip
        elif text.answer is None:
            room, what, reader, remedy = limits.encoder, "the prompt {} has", "encoder", "prompt"
        else:
            room, what, reader, remedy = limits.decoder, "the answer to {} has", "decoder", "answer"
        if room is not None and length > room:
            raise ValueError(
                f"{what.format(f'{text.prompt[:60]!r}…')} {length} tokens but the {reader} takes "
                f"{room}; shorten the {remedy}"
            )
        if rows is not None and (beyond := [token for token in ids if token >= rows]):
            name = self.tokenizer.convert_ids_to_tokens(beyond[0])
            raise ValueError(
                f"the token {name!r} of {text.prompt[:60]!r} has number {beyond[0]}, but the "
                f"model's embedding has {rows} rows; call model.resize_token_embeddings(...) "
                "after adding tokens, or load model and tokenizer of one folder"
            )


def _caught(work: Callable[..., _Result], *arguments: Any) -> "_Result | ValueError":
    """Return a result, or the error of one text, so that the others are encoded."""
    try:
        return work(*arguments)
    except ValueError as error:
        return error


def max_positions(model: Any) -> int | None:
    """Return the context length of a model in tokens; ``None`` if it has no limit.

    Args:
        model: A Hugging Face language model.
    """
    config = model.config.get_text_config(decoder=True)
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
