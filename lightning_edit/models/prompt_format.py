"""Prompt format: how prompts are rendered, and what stands between prompt and answer in plain text.

Plain text is rendered here and chats in ``chat_template``, once for search, training, scoring and
generation, so that a model is edited and scored exactly where it is used.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lightning_edit.exceptions import ConfigError
from lightning_edit.types.scripts import is_joined, is_unspaced

_OPENING = "“‘«‹„‚([{「『（【《〈〔［｛¿¡"
_QUOTES = "\"'`"


@dataclass(frozen=True)
class PromptFormat:
    """How prompts are rendered as text for a language model.

    Args:
        chat: Put every prompt into the user's turn of the model's chat template, with the answer as
            the assistant's turn. ``False``: plain text. ``"both"``: an edit is written for either
            form; questions go through the chat template.
        system: System message of the chat; ``None``: the template's own default, if it has one.
        separator: Text between prompt and answer; ``None``: by :func:`separator_between`. A chat
            template brings its own.
        chat_options: Further variables of the chat template, such as ``enable_thinking: true``.
        end_answers: An answer is learnt with its end, a chat's end of turn or EOS, so that the
            model says it and stops. ``False``: the answer alone, as published methods do; the model
            goes on from it as it likes. Scores of a run do not count its end.
        think: Of a chat template that lets the model think before it answers, or leaves more to it:
            ``False``: an answer stands where the template itself writes one, behind an empty
            thought; ``True``: where the template asks for it, so that the model's thought begins
            there. ``None``: false, unless ``chat_options`` ask for the thought. A prompt encoder
            decides it, and it stays ``None`` where a template makes no difference.

    Raises:
        ConfigError: If a system message or template variables are given without ``chat``, or
            ``chat`` is none of the three.
    """

    chat: bool | Literal["both"] = False
    system: str | None = None
    separator: str | None = None
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    end_answers: bool = False
    think: bool | None = None

    @classmethod
    def stored(cls, record: Mapping[str, Any]) -> "PromptFormat":
        """Return the format that :meth:`to_dict` has described, of an earlier version too.

        Args:
            record: Its fields. Earlier versions asked where the template asks.

        Raises:
            ConfigError: As the class.
            TypeError: If it holds other fields.
        """
        return cls(**({"think": True} if record.get("chat") else {}) | dict(record))

    def __post_init__(self) -> None:
        if self.chat not in (False, True, "both"):
            raise ConfigError(
                f"chat (--lm_chat) is true, false or both, got {self.chat!r}; both writes every "
                "edit for the chat template and for plain text"
            )
        if not self.chat and (self.system is not None or self.chat_options):
            raise ConfigError(
                "a system message and chat_options belong to a chat template; set chat=True "
                "(--lm_chat true), or leave them out"
            )

    def to_dict(self) -> dict[str, Any]:
        """Serialise the format to plain containers, for a run folder or a checkpoint."""
        found = asdict(self) | {"chat_options": dict(self.chat_options)}
        if not self.end_answers:  # as in files that were written before there was a choice
            del found["end_answers"]
        if self.think is not False:
            del found["think"]
        return found

    def describe(self) -> str:
        """Describe the format in words, for messages and model cards."""
        ends = ", answers learnt with their end" if self.end_answers else ""
        if not self.chat:
            return f"plain text{ends}"
        words = "chat template"
        if self.chat == "both":
            words += " and plain text"
        if self.system is not None:
            words += f", system message {self.system!r}"
        if self.chat_options:
            given = ", ".join(f"{name}={value!r}" for name, value in self.chat_options.items())
            words += f", {given}"
        if self.think is not None:
            words += ", from its thought on" if self.think else ", answers as it writes them"
        return words + ends


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the model reads it, with its answer.

    Args:
        text: Everything up to the answer's end.
        prompt_end: Character at which the prompt ends; blanks behind it belong to the answer.
        answer_start: Character at which the answer's own text begins; the text's length without an
            answer.
        shift: Characters in front of the prompt as it was given (a chat template's).
        special: Whether the text holds its special tokens (a BOS) already.
    """

    text: str
    prompt_end: int
    answer_start: int
    shift: int = 0
    special: bool = False


def separator_between(prompt: str, answer: str) -> str:
    """Return what stands between a prompt and its answer where nobody has said it.

    Nothing after white space, an opening quote or bracket, or a script written without blanks
    (Chinese and Japanese; Thai, Lao, Burmese, Khmer and Tibetan before the same); else one blank.

    Args:
        prompt: Text before the answer.
        answer: The answer.

    Example:
        >>> separator_between("The capital of France is", "Paris")
        ' '
        >>> separator_between("法国的首都是", "巴黎"), separator_between('It is called "', "Rome")
        ('', '')
    """
    if not prompt or prompt[-1].isspace() or answer[:1].isspace():
        return ""
    last, first = prompt[-1], answer[:1]
    if last in _OPENING or (last in _QUOTES and _opens(prompt)):
        return ""
    if is_unspaced(last) or (is_joined(last) and is_joined(first)):
        return ""
    return " "


def _opens(prompt: str) -> bool:
    """Return whether a straight quote at the end of a text opens a quotation."""
    before = prompt[-2:-1]
    return not before or before.isspace() or before in _OPENING


def render_plain(
    prompt: str, answer: str | None, separator: str | None, markers: tuple[str, ...] = ()
) -> RenderedPrompt:
    """Join a prompt and its answer in running text.

    The prompt stays as it is given, newlines and special tokens at its end included; blanks at its
    end move to the answer, as in lm-evaluation-harness, since tokenizers join them to words.

    Args:
        prompt: Text before the answer.
        answer: The answer, without white space at its end; ``None``: the prompt alone.
        separator: Text between them; ``None``: by :func:`separator_between`.
        markers: Special tokens, after which no blank is put.
    """
    between = separator
    if between is None:
        marked = any(prompt.endswith(marker) for marker in markers)
        between = "" if answer is None or marked else separator_between(prompt, answer)
    if answer is not None and answer[:1].isspace():
        # The blank stands in the answer already.
        prompt = prompt if between else prompt.rstrip(" ")
    before = prompt + between
    end = len(before.rstrip(" "))
    if answer is None:
        return RenderedPrompt(before[:end], end, end)
    text = before + answer.rstrip()
    start = end + len(text[end:]) - len(text[end:].lstrip())
    return RenderedPrompt(text, end, start)
