"""Chat templates of other models: thoughts, channels, markers and dates around an answer.

Templates here are short ones of the same build as those of the models that they are named after.
"""

import logging
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_edit.editors import FTM, OneLI
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.chat_template import (
    answer_opening,
    decided,
    end_of_turn,
    render_chat,
    thinking_note,
)
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.models.prompt_format import PromptFormat
from tests.models.tiny import build_tokenizer

_USER = "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}"
_ASK = "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>\n"
QWEN3 = (
    _USER + "{% else %}<a>\n<think>\n\n</think>\n\n{{ m.content }}<end>" + _ASK
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)  # fmt: skip
SMOLLM3 = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "<s>{{ '/think' if enable_thinking else '/no_think' }}</s>" + _USER
    + "{% else %}<a>\n{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}{{ m.content }}"
    "<end>" + _ASK + "{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)  # fmt: skip
DEEPSEEK_R1 = _USER + "{% else %}<a>{{ m.content }}<end>" + _ASK + "<think>\n{% endif %}"
GLM = _USER + "{% else %}<a>\n</think>{{ m.content }}" + _ASK + "<think>{% endif %}"
GPT_OSS = (
    "{{ reasoning_effort }}" + _USER + "{% else %}<a>\n<channel>final<message>{{ m.content }}<end>"
    + _ASK + "{% endif %}"
)  # fmt: skip
COMMAND_R = (
    _USER + "{% else %}<a><answer>{{ m.content }}</answer>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
GEMMA4 = (
    _USER
    + "{% else %}<a>\n{{ m.content }}<end>"
    + _ASK
    + "<|channel>thought\n<channel|>{% endif %}"
)
APRIEL = _USER + "{% else %}<a>\n{{ m.content }}<end>" + _ASK + "Here is how I think:\n{% endif %}"
LLAMA2 = _USER + "{% else %} {{ m.content }}{% endif %}{% endfor %}"
PLAIN = _USER + "{% else %}<a>\n{{ m.content }}<end>" + _ASK + "{% endif %}"

QUESTION = "Where was Ada born?"


def tokenizer_of(template: str) -> Any:
    tokenizer = build_tokenizer(bos=True, vocab_size=320)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "behind", "thinks"),
    [
        (QWEN3, "<a>\n<think>\n\n</think>\n\n", True),
        (SMOLLM3, "<a>\n<think>\n\n</think>\n", True),
        (DEEPSEEK_R1, "<a>\n<think>\n\n</think>\n\n", True),
        (GLM, "<a>\n<think></think>", True),
        (GPT_OSS, "<a>\n<channel>final<message>", True),
        (COMMAND_R, "<a><answer>", False),
        (GEMMA4, "<a>\n<|channel>thought\n<channel|>", False),
        (PLAIN, "<a>\n", False),
    ],
)
def test_an_answer_stands_behind_an_empty_thought_and_what_the_template_leaves_to_the_model(
    template: str, behind: str, thinks: bool
) -> None:
    tokenizer = tokenizer_of(template)
    encoder = PromptEncoder(tokenizer, PromptFormat(chat=True))
    rendered = encoder.render(PromptText(QUESTION, "Oslo"))
    assert rendered.text.endswith(f"<u>{QUESTION}{behind}Oslo")
    (asked,), (pair,) = encoder.prompts([QUESTION]), encoder.pairs([(QUESTION, "Oslo")])
    assert asked == pair[0]  # generated and scored behind the same tokens
    assert tokenizer.decode(pair[1]).strip() == "Oslo"
    note = thinking_note(tokenizer, PromptFormat(chat=True))
    assert (note is not None) == thinks
    assert thinking_note(tokenizer, encoder.form) == note


def test_a_switch_is_named_among_the_variables_and_a_given_one_stays() -> None:
    tokenizer = tokenizer_of(SMOLLM3)
    encoder = PromptEncoder(tokenizer, PromptFormat(chat=True, chat_options={"a": 1}))
    assert encoder.form.chat_options == {"a": 1, "enable_thinking": False}
    assert "/no_think" in encoder.render(PromptText(QUESTION)).text
    assert PromptEncoder(tokenizer, PromptFormat()).form == PromptFormat()


ALOUD = PromptFormat(chat=True, chat_options={"enable_thinking": True})


@pytest.mark.parametrize("template", [SMOLLM3, QWEN3, DEEPSEEK_R1, GPT_OSS])
def test_a_thought_that_is_asked_for_begins_where_the_template_asks(template: str) -> None:
    tokenizer = tokenizer_of(template)
    encoder = PromptEncoder(tokenizer, ALOUD)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    assert encoder.render(PromptText(QUESTION)).text == asked
    assert "enable_thinking=True" in encoder.form.describe()
    assert "generates is a thought" in str(thinking_note(tokenizer, ALOUD))


@pytest.mark.parametrize("template", [PLAIN, COMMAND_R, GEMMA4])
def test_a_thought_is_not_asked_of_a_template_that_has_none(template: str) -> None:
    tokenizer = tokenizer_of(template)
    plain = PromptEncoder(tokenizer, PromptFormat(True)).render(PromptText(QUESTION, "Oslo"))
    assert PromptEncoder(tokenizer, ALOUD).render(PromptText(QUESTION, "Oslo")) == plain
    assert thinking_note(tokenizer, ALOUD) is None


def test_a_variable_of_a_template_that_opens_its_thought_is_obeyed() -> None:
    switch = "{{ '<think>' if thinking else '</think>' }}{% endif %}"
    template = _USER + "{% else %}<a>\n</think>{{ m.content }}<end>" + _ASK + switch
    tokenizer = tokenizer_of(template)
    for options, end in (({}, "</think>"), ({"thinking": True}, "<think>")):
        encoder = PromptEncoder(tokenizer, PromptFormat(True, chat_options=options))
        assert encoder.render(PromptText(QUESTION)).text.endswith(f"<a>\n{end}")


@pytest.mark.parametrize(
    "template", [QWEN3, SMOLLM3, DEEPSEEK_R1, GLM, GPT_OSS, COMMAND_R, GEMMA4, PLAIN]
)
@pytest.mark.parametrize("form", [PromptFormat(True), ALOUD, PromptFormat("both")])
def test_a_decided_format_stays_and_is_read_back(template: str, form: PromptFormat) -> None:
    tokenizer = tokenizer_of(template)
    given = PromptEncoder(tokenizer, form)
    again = PromptEncoder(tokenizer, PromptFormat.stored(given.form.to_dict()))
    assert decided(tokenizer, given.form) == given.form == again.form
    text = PromptText(QUESTION, "Oslo")
    assert again.render(text) == given.render(text)


@pytest.mark.parametrize("template", [QWEN3, SMOLLM3, DEEPSEEK_R1, GPT_OSS, COMMAND_R, LLAMA2])
def test_what_an_earlier_version_stored_is_asked_as_it_was(template: str) -> None:
    tokenizer = tokenizer_of(template)
    stored = {"chat": True, "system": None, "separator": None, "chat_options": {}}
    encoder = PromptEncoder(tokenizer, PromptFormat.stored(stored))
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    assert encoder.render(PromptText(QUESTION)).text == asked
    assert encoder.form.to_dict() == stored
    if template == LLAMA2:  # nothing has changed there
        assert encoder.form == PromptEncoder(tokenizer, PromptFormat(True)).form
        assert encoder.render(PromptText(QUESTION, "Oslo")).text == asked + " Oslo"
    else:
        now = PromptEncoder(tokenizer, PromptFormat(True)).form
        assert now != encoder.form
        assert now.to_dict() != stored


def test_a_marker_behind_a_closed_thought_is_found() -> None:
    closed = "<a>\n{{ '<think></think>' }}<end><a>\n"
    template = GPT_OSS.replace(_ASK, _ASK.replace("<a>\n", closed)).replace("<a>", "<assistant>")
    rendered = PromptEncoder(tokenizer_of(template), PromptFormat(True)).render(
        PromptText(QUESTION, "Oslo")
    )
    assert rendered.text.endswith("<think></think><end><assistant>\n<channel>final<message>Oslo")


def test_a_template_that_changes_answers_adds_nothing_of_them() -> None:
    tokenizer = tokenizer_of(PLAIN.replace("<a>\n{{ m.content }}", "<a>\n{{ m.content | upper }}"))
    rendered = render_chat(tokenizer, QUESTION, "Oslo", PromptFormat(True))
    assert rendered.text == f"<u>{QUESTION}<a>\nOslo"


def test_generation_and_scoring_stand_behind_the_same_tokens_where_line_breaks_join() -> None:
    # As GPT-2's: line breaks at the end are one token, in front of a word they are several.
    vocabulary = {c: number for number, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Tokenizer(models.BPE(vocabulary | {"ĊĊ": len(vocabulary)}, [("Ċ", "Ċ")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    broken = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="!")
    broken.chat_template = DEEPSEEK_R1
    encoder = PromptEncoder(broken, PromptFormat(True))
    (asked,), (pair,) = encoder.prompts([QUESTION]), encoder.pairs([(QUESTION, "Oslo")])
    assert asked == pair[0]
    assert asked[-1] == len(vocabulary)
    assert broken.decode(pair[1]) == "Oslo"


@pytest.mark.parametrize(
    ("template", "end"), [(GPT_OSS, "<end>"), (COMMAND_R, "</answer>"), (GLM, ""), (QWEN3, "<end>")]
)
def test_the_end_of_a_turn_is_what_follows_the_answer(template: str, end: str) -> None:
    assert end_of_turn(tokenizer_of(template), PromptFormat(True)) == end


def test_a_prompt_that_may_begin_a_thought_is_named() -> None:
    note = thinking_note(tokenizer_of(APRIEL), PromptFormat(True))
    assert "asks with 'Here is how I think:\\n'" in str(note)
    seed = PLAIN + "{# <seed:think> #}"
    assert "knows '<seed:think>'" in str(thinking_note(tokenizer_of(seed), PromptFormat(True)))
    assert thinking_note(tokenizer_of(QWEN3), PromptFormat()) is None
    blank = PLAIN.replace(_ASK, _ASK + " ")
    assert thinking_note(tokenizer_of(blank), PromptFormat(True)) is None


@pytest.mark.parametrize(
    ("begin", "closed"),
    [
        ("<think>\n", "<think>\n\n</think>\n\n"),
        ("<think>", "<think></think>"),
        ("<seed:think>", "<seed:think></seed:think>"),
        ("[THINK]", "[THINK][/THINK]"),
        ("<|START_THINKING|>", "<|START_THINKING|><|END_THINKING|>"),
        ("<|channel>thought\n", "<|channel>thought\n<channel|>"),
    ],
)
def test_a_thought_that_a_template_opens_is_closed(begin: str, closed: str) -> None:
    tokenizer = tokenizer_of(DEEPSEEK_R1.replace("<think>\n", begin))
    rendered = render_chat(tokenizer, QUESTION, "Oslo", PromptFormat(True))
    assert rendered.text.endswith(f"<a>\n{closed}Oslo")


def test_a_named_template_is_found() -> None:
    tokenizer = tokenizer_of(PLAIN)
    tokenizer.chat_template = {"default": PLAIN, "tool_use": "tools" + PLAIN}
    for options in ({"chat_template": "tool_use"}, {"tools": [{"name": "a"}]}):
        form = PromptFormat(True, chat_options=options)
        assert render_chat(tokenizer, QUESTION, None, form).text.startswith("tools")
    assert render_chat(tokenizer, QUESTION, None, PromptFormat(True)).text.startswith("<u>")
    tokenizer.chat_template = {"default": PLAIN, "tool_use": DEEPSEEK_R1}
    assert thinking_note(tokenizer, PromptFormat(True)) is None
    form = PromptFormat(True, chat_options={"chat_template": "tool_use"})
    encoder = PromptEncoder(tokenizer, form)
    assert encoder.render(PromptText(QUESTION)).text.endswith("<think>\n\n</think>\n\n")
    assert "without a thought" in str(thinking_note(tokenizer, encoder.form))


def test_variables_that_a_template_needs_leave_its_thought_decided() -> None:
    tokenizer = tokenizer_of("{{ functions.a }}" + DEEPSEEK_R1)
    given: dict[str, Any] = {"functions": {"a": "1"}}
    for options, think in ((given, False), (given | {"enable_thinking": True}, True)):
        encoder = PromptEncoder(tokenizer, PromptFormat(True, chat_options=options))
        assert encoder.form.think is think
        assert PromptFormat.stored(encoder.form.to_dict()) == encoder.form


def test_plain_text_has_no_thoughts() -> None:
    assert PromptEncoder(tokenizer_of(QWEN3), PromptFormat(think=True)).form == PromptFormat()


def test_an_encoder_keeps_its_options_where_an_edit_is_asked_for_chat() -> None:
    model, tokenizer = load_language_model("atlas")
    tokenizer.chat_template = QWEN3
    options = {"enable_thinking": True}
    given = PromptEncoder(tokenizer, PromptFormat(True, "Be brief.", chat_options=options))
    editor = FTM()
    editor.edit_model(model, given, {"prompt": QUESTION, "target": "Oslo"}, chat=True)
    assert editor.prompts.form == given.form


def test_a_user_who_writes_of_thoughts_opens_none() -> None:
    tokenizer, question = tokenizer_of(PLAIN), "What does <think> mean?"
    rendered = render_chat(tokenizer, question, "A tag", PromptFormat(True))
    assert rendered.text.endswith(f"{question}<a>\nA tag")
    system = PromptFormat(True, system="Write <think> first.")
    assert answer_opening(tokenizer, system) == ""


@pytest.mark.parametrize(
    "today",
    [
        "{{ strftime_now('%Y-%m-%d') }}",
        '{{ strftime_now( "%Y-%m-%d" ) }}',
        "{% if date_string is defined %}2024-07-26{% else %}{{ strftime_now('%Y') }}{% endif %}",
    ],
)
def test_a_template_that_prints_the_date_prints_one_day(today: str) -> None:
    rendered = render_chat(tokenizer_of(today + PLAIN), QUESTION, "Oslo", PromptFormat(True))
    assert rendered.text == f"2024-07-26<u>{QUESTION}<a>\nOslo"


def test_a_template_that_refuses_says_what_to_give() -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no rules') }}{% endif %}"
    with pytest.raises(ConfigError, match=r"no rules.*system and user.*no system message"):
        render_chat(tokenizer_of(refuses + PLAIN), QUESTION, None, PromptFormat(True, "Be brief."))
    encoder = PromptEncoder(tokenizer_of("{{ functions.a }}" + PLAIN), PromptFormat(True))
    with pytest.raises(ConfigError, match=r"'functions' is undefined.*chat_options"):
        encoder.prompts([QUESTION])


def test_a_wrapped_editor_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = load_language_model("atlas")
    tokenizer.chat_template = QWEN3
    given = PromptEncoder(tokenizer, PromptFormat(True))
    editor = OneLI(FTM())
    with caplog.at_level(logging.WARNING):
        editor.bind(model, given)
        editor.editor.bind(model, given)
    told = [one.message.split(":")[0] for one in caplog.records if "thought" in one.message]
    assert told == ["OneLI", "FTM"]


@pytest.mark.parametrize(
    ("template", "options", "said"),
    [
        (QWEN3, {}, "without a thought"),
        (DEEPSEEK_R1, {}, "without a thought"),
        (QWEN3, {"enable_thinking": True}, "is a thought"),
        (PLAIN, {}, None),
    ],
)
def test_an_edit_of_a_model_that_thinks_is_written_behind_its_thought_and_says_so(
    template: str, options: dict[str, Any], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = load_language_model("atlas")
    tokenizer.chat_template = template
    prompt = "What is the capital of France?"
    given = PromptEncoder(tokenizer, PromptFormat(True, chat_options=options))
    with caplog.at_level(logging.WARNING):
        edited = FTM().edit_model(model, given, {"prompt": prompt, "target": "Oslo"})
    warned = [record.message for record in caplog.records if "thought" in record.message]
    assert [said is not None and said in one for one in warned] == [True] * (said is not None)
    answer = edited.generate(prompt, max_new_tokens=3)
    assert answer.startswith("Oslo")
    # In plain transformers: the template's own text, with the thought closed where it opens one.
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True,
        enable_thinking=bool(options),
    )  # fmt: skip
    text += given.answer_opening
    assert text.endswith("</think>\n\n") == (said == "without a thought")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    output = model.generate(**ids, do_sample=False, max_new_tokens=3)
    assert tokenizer.decode(output[0, ids["input_ids"].shape[1] :]).strip() == answer
