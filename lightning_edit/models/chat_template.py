"""Chat templates: the text around a user's message, and where the answer to it begins.

An answer stands where the template itself writes one, behind whatever the template or the model
puts before it: a channel's name (gpt-oss), a response marker (Command R7B), an empty thought
(Qwen3).
"""

import re
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from itertools import takewhile
from typing import Any

from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.models.prompt_format import PromptFormat, RenderedPrompt

#: The day in templates that print today's, which would make a run depend on when it is resumed.
_DAY = datetime(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)""")
_SWITCH = "enable_thinking"
#: Options that say which of a tokenizer's templates is asked through.
_WHICH = ("chat_template", "tools")
#: Values of template variables that nobody has given.
_FIXED = {"date_string": "26 Jul 2024"}
#: What begins a thought and what ends it.
_THOUGHTS = {
    **{f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning")},
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
    "<|channel>thought": "<channel|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
}
_QUESTION, _ANSWER = "a question", "an answer"
#: Fewest characters that say where a template's text of an earlier turn goes on like its prompt.
_MARKER = 6


def render_chat(
    tokenizer: Any,
    prompt: str,
    answer: str | None,
    form: PromptFormat,
    opening: str | None = None,
) -> RenderedPrompt:
    """Render a prompt as the user's turn of a chat, with the answer as the assistant's.

    Args:
        tokenizer: A tokenizer with a chat template.
        prompt: The user's message.
        answer: The assistant's answer; ``None``: up to where it begins.
        form: System message and template variables.
        opening: What :func:`answer_opening` returns, where it is known; ``None``: it is asked.

    Raises:
        ConfigError: If the tokenizer has no chat template, or it cannot be rendered.
        DataError: If the template changes the message.
    """
    opened = _apply(tokenizer, prompt, None, form)
    message = prompt.strip()
    at = opened.rfind(message)
    if at < 0:
        raise DataError(
            f"the chat template of {type(tokenizer).__name__} does not hold the message "
            f"{message[:40]!r} as it is written, so it cannot be located; edit without chat"
        )
    shift = at - (len(prompt) - len(prompt.lstrip()))
    opened += answer_opening(tokenizer, form) if opening is None else opening
    end = len(opened.rstrip(" "))
    if answer is None:
        return RenderedPrompt(opened[:end], end, end, shift, True)
    return RenderedPrompt(opened + answer.strip(), end, len(opened), shift, True)


def decided(tokenizer: Any, form: PromptFormat) -> PromptFormat:
    """Return a format that says how a model that thinks before it answers is asked.

    A template's switch ``enable_thinking`` is then among the template's variables, so that whatever
    says how prompts are asked names it. A format for which the template makes no difference stays
    as it is, and so does one that is decided already.

    Args:
        tokenizer: A tokenizer.
        form: The format as it was given.
    """
    if not form.chat:
        return replace(form, think=None)
    try:
        off = _switched_off(tokenizer, form)
        raw, direct = replace(form, think=True), replace(off, think=False)
        if _asked(tokenizer, raw) == _asked(tokenizer, direct):
            return replace(form, think=None)
        think = _asks_for_thoughts(tokenizer, form) if form.think is None else form.think
        if think:
            return raw
        switched = _asked(tokenizer, replace(off, think=True)) == _asked(tokenizer, direct)
        return replace(off, think=None if switched else False)
    except ConfigError:  # said where a prompt is rendered
        return form


def answer_opening(tokenizer: Any, form: PromptFormat) -> str:
    """Return what stands between the prompt that a template asks with and the answer.

    Usually nothing, or the blank of ``[/INST] answer``. A template may leave more to the model, a
    channel's name or a response marker, which it writes itself before the answers of earlier turns;
    and a thought that it opens is closed, empty. Neither where the format has the model think.

    Args:
        tokenizer: A tokenizer with a chat template.
        form: The format of prompts.

    Raises:
        ConfigError: If the tokenizer has no chat template, or it cannot be rendered.
    """
    opened = _apply(tokenizer, _QUESTION, None, form)
    gap = _gap(opened, _apply(tokenizer, _QUESTION, _ANSWER, form))
    if not gap.strip() and opened[-1:].isspace():
        gap = ""
    if form.think:
        return "" if gap.strip() else gap
    return gap + _closing(_behind_question(opened) + gap)


def thinking_note(tokenizer: Any, form: PromptFormat) -> str | None:
    """Return what a user must know of a model that may think before it answers; ``None``: nothing.

    Args:
        tokenizer: A tokenizer.
        form: The format of prompts.
    """
    if not form.chat:
        return None
    form = decided(tokenizer, form)
    given = form.chat_options.get(_SWITCH)
    own = replace(form, chat_options=_without_switch(form))
    switch = _SWITCH in _switched_off(tokenizer, own).chat_options
    if form.think or (given and switch and form.think is None):
        return (
            "prompts end where the model would begin to think, and edits are written there: what "
            "it generates is a thought, and scores are of its first words"
        )
    template = _template(tokenizer, form)
    asked = _behind_question(_asked(tokenizer, form))
    closed = any(end in asked for end in _THOUGHTS.values())
    if switch or (form.think is False and (closed or "reasoning_effort" in template)):
        return (
            "by its chat template the model thinks before it answers: edits are written, asked "
            "and scored without a thought, so what it answers after one is not measured"
        )
    known = [begin for begin in _THOUGHTS if begin in template]
    opened = _apply(tokenizer, _QUESTION, None, form)
    rest = _beyond(opened, _apply(tokenizer, _QUESTION, _ANSWER, form))
    if closed or not (known or rest.strip()):
        return None
    sign = f"knows {known[0]!r}" if known else f"asks with {rest!r}, unlike before earlier answers"
    return (
        f"its chat template {sign}: if the model thinks before it answers, edits are written where "
        "its thought begins, and scores are of the thought's first words"
    )


def own_system_message(tokenizer: Any, form: PromptFormat | None = None) -> str | None:
    """Return the system message that a chat template adds where none is given.

    Args:
        tokenizer: A tokenizer with a chat template.
        form: Template variables; ``None``: none.

    Returns:
        The message; ``None`` if the template adds none, or takes no system message.
    """
    options = {} if form is None else dict(form.chat_options)
    alone = _apply(tokenizer, _QUESTION, None, PromptFormat(True, chat_options=options))
    try:
        given = _apply(tokenizer, _QUESTION, None, PromptFormat(True, "a rule", None, options))
    except ConfigError:
        return None
    at = given.find("a rule")
    if at < 0:
        return None
    head, behind = given[:at], given[at + len("a rule") : given.rfind(_QUESTION)]
    before = alone[: alone.rfind(_QUESTION)]
    if not (before.startswith(head) and before[len(head) :].endswith(behind)):
        return None
    return before[len(head) : len(before) - len(behind)].strip() or None


def end_of_turn(tokenizer: Any, form: PromptFormat) -> str:
    """Return what a chat template puts after an assistant's answer, such as ``<|im_end|>``.

    Args:
        tokenizer: A tokenizer with a chat template.
        form: System message and template variables.
    """
    whole = _apply(tokenizer, _QUESTION, _ANSWER, form)
    return whole[whole.rfind(_ANSWER) + len(_ANSWER) :].strip()


@lru_cache(maxsize=16)
def _undated(template: str) -> str:
    """Return a template that prints one day as today's."""

    def fixed(found: re.Match[str]) -> str:
        return repr(_DAY.strftime(found[1] if found[1] is not None else found[2]))

    return _TODAY.sub(fixed, template)


def _template(tokenizer: Any, form: PromptFormat) -> str:
    """Return the template of a tokenizer that a format asks through.

    Raises:
        ConfigError: If there is none.
    """
    named, tools = (form.chat_options.get(name) for name in _WHICH)
    if named is None and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"{type(tokenizer).__name__} has no chat template, so nothing can be asked through "
            "one; set chat to false, or give the tokenizer of an instruct model"
        )
    try:
        return str(tokenizer.get_chat_template(named, tools))
    except ValueError as error:
        raise ConfigError(f"{error} (--lm_chat_options, chat_template)") from error


def _without_switch(form: PromptFormat) -> dict[str, Any]:
    return {name: one for name, one in form.chat_options.items() if name != _SWITCH}


def _switched_off(tokenizer: Any, form: PromptFormat) -> PromptFormat:
    """Return a format with the template's switch off, if it has one that was not given."""
    if _SWITCH in form.chat_options or _SWITCH not in _template(tokenizer, form):
        return form
    off = replace(form, chat_options={**form.chat_options, _SWITCH: False})
    same = _apply(tokenizer, _QUESTION, None, form) == _apply(tokenizer, _QUESTION, None, off)
    return form if same else off


def _asks_for_thoughts(tokenizer: Any, form: PromptFormat) -> bool:
    """Return whether variables of a format ask for the thought of a template that has one."""
    if not form.chat_options:
        return False
    kept = {name: one for name, one in form.chat_options.items() if name in _WHICH}
    plain = replace(form, chat_options=kept, think=False)
    wanted = bool(form.chat_options.get(_SWITCH))
    template = _template(tokenizer, form)
    if wanted and (_SWITCH in template or "reasoning_effort" in template):
        return True
    try:
        if wanted:
            asked = _behind_question(_asked(tokenizer, plain))
            return any(end in asked for end in _THOUGHTS.values())
        opens = [
            _closing(_behind_question(_apply(tokenizer, _QUESTION, None, one)))
            for one in (form, plain)
        ]
        return bool(opens[0]) and not opens[1]
    except ConfigError:  # the template needs one of the variables
        return wanted


def _asked(tokenizer: Any, form: PromptFormat) -> str:
    """Return the whole prompt of a question, up to its answer."""
    return _apply(tokenizer, _QUESTION, None, form) + answer_opening(tokenizer, form)


def _behind_question(text: str) -> str:
    return text[text.rfind(_QUESTION) + len(_QUESTION) :]


def _beyond(opened: str, whole: str) -> str:
    """Return the end of a prompt that the text with its answer does not share."""
    pairs = zip(opened, whole, strict=False)
    return opened[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]


def _gap(opened: str, whole: str) -> str:
    """Return what a template writes between its prompt and an answer; empty where it is not found.

    Args:
        opened: The prompt.
        whole: The prompt with its answer.
    """
    answer = whole.rfind(_ANSWER)
    if answer < 0:  # the template changes it
        return ""
    before = whole[:answer]
    if before.startswith(opened):
        return before[len(opened) :]
    # A prompt with more than the text of earlier turns, such as a thought that is closed already.
    tail, before = _behind_question(opened), _behind_question(before)
    for length in range(len(tail), _MARKER - 1, -1):
        at = before.rfind(tail[-length:])
        if at >= 0:
            return before[at + length :]
    return ""


def _closing(behind: str) -> str:
    """Return what closes the thought that a text leaves open; empty if it leaves none."""
    lined = behind.endswith("\n")  # then an empty thought has lines of its own, as Qwen3 writes it
    for begin, end in _THOUGHTS.items():
        at = behind.rfind(begin)
        if at >= 0 and end not in behind[at:]:
            return f"\n{end}\n\n" if lined and end.startswith("</") else end
    return ""


def _apply(
    tokenizer: Any,
    prompt: str,
    answer: str | None,
    form: PromptFormat,
) -> str:
    messages = [] if form.system is None else [{"role": "system", "content": form.system}]
    messages.append({"role": "user", "content": prompt})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    template = _undated(_template(tokenizer, form))
    options = _FIXED | dict(form.chat_options) | {"chat_template": template}
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None, **options
            )
        )
    except Exception as error:  # a template is a program of its author
        roles = " and ".join(one["role"] for one in messages)
        raise ConfigError(
            f"the chat template of {type(tokenizer).__name__} cannot be rendered "
            f"({type(error).__name__}: {error}) for messages of {roles}. Variables that it needs "
            "are given as chat_options (--lm_chat_options); some templates take no system message"
        ) from error
