"""Prompt encoder: token ids of prompts and answers, and of the subject inside a prompt.

Prompt and answer are tokenised *together*: tokenizers join the blank before a word to it, and
tokenising them separately gives ids that the model never sees in running text.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from lightning_edit.exceptions import DataError
from lightning_edit.models.answer_ends import AnswerEnds
from lightning_edit.models.chat_template import answer_opening, decided, render_chat
from lightning_edit.models.limits import Limits, max_positions
from lightning_edit.models.prompt_format import PromptFormat, RenderedPrompt, render_plain
from lightning_edit.models.token_places import answer_begin, subject_span

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


class PromptEncoder(AnswerEnds):
    """Tokenisation of prompts and answers for one language model.

    Everything that asks or edits a model tokenises through one of these. Where a function takes a
    tokenizer, it takes a prompt encoder as well; a bare tokenizer stands for plain text.

    Args:
        tokenizer: A fast Hugging Face tokenizer, of any padding side.
        form: How prompts are rendered; ``None``: plain text. What it leaves open of a model that
            thinks is decided here: see :func:`~lightning_edit.models.chat_template.decided`.
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
        self.form = PromptFormat() if form is None else decided(tokenizer, form)
        self.limits = Limits() if limits is None else limits
        self.two_stacks = two_stacks
        self._known: OrderedDict[PromptText, EncodedPrompt | ValueError] = OrderedDict()
        self._plain: PromptEncoder | None = None
        self._opening: str | None = None

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

    @property
    def answer_opening(self) -> str:
        """What stands between a chat template's prompt and the answer; empty in plain text.

        See :func:`~lightning_edit.models.chat_template.answer_opening`.

        Raises:
            ConfigError: If the tokenizer has no chat template, or it cannot be rendered.
        """
        if self._opening is None:
            chat = self.form.chat
            self._opening = answer_opening(self.tokenizer, self.form) if chat else ""
        return self._opening

    def encode(self, texts: Iterable[PromptText]) -> Iterator[EncodedPrompt]:
        """Tokenise prompts, with their answers.

        Args:
            texts: The prompts.

        Yields:
            The ids of each, in order.

        Raises:
            DataError: On reaching a text that cannot be encoded: an answer without a token of its
                own, a subject that no token covers, more tokens than the model takes, or a token
                that the model's embedding does not have.
            ConfigError: If the chat template cannot be rendered.
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
                raise encoded.with_traceback(None)
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
            opening = self.answer_opening
            opened = render_chat(self.tokenizer, text or "-", None, self.form, opening)
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

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens, without special tokens.

        Args:
            tokens: Token ids.
        """
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    # ------------------------------------------------------------------------------------ pieces

    def _encode(self, texts: Sequence[PromptText]) -> list[EncodedPrompt | ValueError]:
        if texts:
            _ = self.answer_opening  # a broken chat template is not the error of one text
        rendered = [_caught(self.render, text) for text in texts]
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
            asked = self._asked(one for _, one in group) if special else {}
            columns = (encoded["input_ids"], encoded["offset_mapping"])
            masks = encoded["special_tokens_mask"]
            for (number, one), ids, offsets, mask in zip(group, *columns, masks, strict=True):
                tokens = [
                    (token, start, end, bool(added) and start == end)
                    for token, (start, end), added in zip(ids, offsets, mask, strict=True)
                ]
                alone = asked.get(one.text[: one.prompt_end])
                found[number] = _caught(self._split, texts[number], one, tokens, alone)
        return [found[number] for number in range(len(texts))]

    def _asked(self, rendered: Iterable[RenderedPrompt]) -> dict[str, Ids]:
        """Tokenise prompts of a chat template alone, where an answer behind them may move tokens.

        Several line breaks at the end of a text are one token of a GPT-2 tokenizer, and several in
        front of a word. A model is asked with the prompt alone.

        Args:
            rendered: Prompts with their answers.
        """
        ends = {one.text[: one.prompt_end] for one in rendered if one.prompt_end < len(one.text)}
        texts = sorted(text for text in ends if text[-2:].isspace())
        if not texts:
            return {}
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return dict(zip(texts, map(tuple, ids), strict=True))

    def render(self, text: PromptText) -> RenderedPrompt:
        """Render a prompt with its answer, as the model reads them.

        Args:
            text: The prompt; without an answer, it ends where the answer begins.

        Raises:
            ConfigError: If the tokenizer has no chat template, or it cannot be rendered.
            DataError: If the template changes the prompt.
        """
        if self.form.chat:
            opening = self.answer_opening
            return render_chat(self.tokenizer, text.prompt, text.answer, self.form, opening)
        separator = self.form.separator if text.separator is None else text.separator
        markers = tuple(self.tokenizer.all_special_tokens)
        return render_plain(text.prompt, text.answer, separator, markers)

    def _split(
        self,
        text: PromptText,
        rendered: RenderedPrompt,
        tokens: list[tuple[int, int, int, bool]],
        asked: Ids | None = None,
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
            offsets = [(start, end) for _, start, end, _ in tokens]
            cut = answer_begin(text.prompt, text.answer, rendered, offsets)
            if cut == 0 and not self.two_stacks:
                raise DataError(
                    f"the prompt {text.prompt!r} merges with its answer's first token, so the "
                    "answer has no context; make the prompt longer"
                )
        numbers = tuple(token for token, *_ in tokens)
        # With two stacks the answer is the decoder's, and the prompt is checked by itself below.
        apart = self.two_stacks and text.answer is not None
        side: Literal["whole", "prompt", "answer"] = "whole"
        if self.two_stacks:
            side = "prompt" if text.answer is None else "answer"
        length = len(numbers) - cut if apart else len(numbers)
        self.limits.check(self.tokenizer, text.prompt, numbers, length, side)
        first, last = None, None
        if text.subject is not None:
            placed = [(token, start, end) for token, start, end, _ in tokens]
            first, last = subject_span(text.prompt, text.subject, rendered, placed, self.decode)
            if last >= cut and not self.two_stacks:
                raise DataError(
                    f"the subject's last token in {text.prompt!r} merges with the answer "
                    f"{text.answer!r}; put text between them"
                )
        prompt = numbers[:cut]
        if asked is not None and cut < len(tokens) and tokens[cut][1] >= rendered.prompt_end:
            prompt = asked  # no token of the answer covers text of the prompt
        if apart:
            (alone,) = self.encode([text._replace(answer=None, subject=None)])
            prompt = alone.prompt
        return EncodedPrompt(prompt, numbers[cut:], first, last)


def _caught(work: Callable[..., _Result], *arguments: Any) -> "_Result | ValueError":
    """Return a result, or the error of one text, so that the others are encoded."""
    try:
        return work(*arguments)
    except ValueError as error:
        return error
