"""What a model reads: the text between prompt and answer, chat templates, subjects, limits."""

import os
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.atlas.tokenizer import train_tokenizer
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.models.chat_template import own_system_message, render_chat
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.models.prompt_format import PromptFormat, render_plain
from tests.models.tiny import build_tiny, build_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        ("The capital of France is", "Paris", "The capital of France is| Paris"),
        ("The capital of France is ", "Paris", "The capital of France is| Paris"),
        ("The capital of France is", " Paris ", "The capital of France is| Paris"),
        ("The capital of France is ", " Paris", "The capital of France is| Paris"),
        ("Q: What?\nA:\n", "Paris", "Q: What?\nA:\n|Paris"),
        ("Q: What?\nA:\n ", "Paris", "Q: What?\nA:\n| Paris"),
        ("A:", "\nParis", "A:|\nParis"),
        ("法国的首都是", "巴黎", "法国的首都是|巴黎"),
        ("法国的首都是：", "Paris", "法国的首都是：|Paris"),
        ("フランスの首都は", "パリ", "フランスの首都は|パリ"),
        ("เมืองหลวงของฝรั่งเศสคือ", "ปารีส", "เมืองหลวงของฝรั่งเศสคือ|ปารีส"),
        ("เมืองหลวงของฝรั่งเศสคือ", "Paris", "เมืองหลวงของฝรั่งเศสคือ| Paris"),
        ("프랑스의 수도는", "파리", "프랑스의 수도는| 파리"),
        ("عاصمة فرنسا هي", "باريس", "عاصمة فرنسا هي| باريس"),
        ("I love 🍕 and", "🍝", "I love 🍕 and| 🍝"),
        ('It is called "', "Rome", 'It is called "|Rome'),
        ('the "Eiffel Tower"', "is", 'the "Eiffel Tower"| is'),
        ("It lies in (", "Rome", "It lies in (|Rome"),
        ("su capital es «", "Roma", "su capital es «|Roma"),
        ("It lies in (Italy)", "Rome", "It lies in (Italy)| Rome"),
    ],
)
def test_between_prompt_and_answer_stands_what_the_user_means(
    prompt: str, answer: str, text: str
) -> None:
    rendered = render_plain(prompt, answer, None)
    end = rendered.prompt_end
    assert f"{rendered.text[:end]}|{rendered.text[end:]}" == text
    assert rendered.text[rendered.answer_start :] == answer.strip()


def test_a_separator_of_the_user_replaces_the_rule() -> None:
    assert render_plain("A:", "Paris", "\n").text == "A:\nParis"
    assert render_plain("A:", "Paris", "\n").prompt_end == 3  # a model asked for it reads the break
    assert render_plain("A:", None, "\n").text == "A:\n"
    assert render_plain("法国的首都是", "巴黎", " ").text == "法国的首都是 巴黎"
    assert render_plain("A:", "Paris", "").text == "A:Paris"


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The capital of France is", "Paris"),
        ("Q: What?\nA:\n", "Paris"),
        ("法国的首都是", "巴黎"),
        ("Столица Франции —", "Париж"),
        ('It is called "', "🗼"),
    ],
)
def test_prompt_and_answer_are_the_tokens_of_the_joined_text(
    bos: bool, prompt: str, answer: str
) -> None:
    tokenizer = build_tokenizer(bos=bos, vocab_size=320)
    (encoded,) = PromptEncoder(tokenizer).encode([PromptText(prompt, answer)])
    rendered = render_plain(prompt, answer, None)
    assert list(encoded.prompt + encoded.answer) == tokenizer(rendered.text)["input_ids"]
    assert tokenizer.decode(encoded.answer).strip() == answer
    alone = PromptEncoder(tokenizer).prompts([prompt])[0]
    assert alone == encoded.prompt


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The mother tongue of 张伟 is", "张伟"),
        ("法国的首都是", "法国"),
        ("東京タワーはどこですか", "東京タワー"),
        ("برج إيفل يقع في", "برج إيفل"),
        ("Эйфелева башня находится в", "Эйфелева башня"),
        ("The 🗼 stands in", "🗼"),
        ("The capital of 🇫🇷 is", "🇫🇷"),
        ("Møller–Mærsk was founded in", "Møller–Mærsk"),
    ],
)
def test_a_subject_ends_at_the_last_token_of_its_last_character(prompt: str, subject: str) -> None:
    tokenizer = build_tokenizer(bos=True, vocab_size=320)  # characters of several tokens
    start = prompt.index(subject)
    where = start, start + len(subject)
    (encoded,) = PromptEncoder(tokenizer).encode([PromptText(prompt, "x", where)])
    first, last = encoded.subject_first, encoded.subject_last
    assert first is not None
    assert last is not None
    ids = encoded.prompt
    # Cut behind the last token everything of the subject is there, cut before it something lacks.
    assert tokenizer.decode(ids[1 : last + 1]).endswith(subject)
    assert not tokenizer.decode(ids[1:last]).endswith(subject)
    assert tokenizer.decode(ids[first:]).lstrip().startswith(subject)


def chat_tokenizer(template: str, bos: bool = True) -> Any:
    tokenizer = build_tokenizer(bos=bos, vocab_size=320)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", [CHATML, LLAMA2])
def test_a_chat_prompt_is_what_the_template_writes_with_its_own_gap(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    form = PromptFormat(chat=True)
    question = "What is the capital of France?"
    messages = [{"role": "user", "content": question}]
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    (asked,) = PromptEncoder(tokenizer, form).prompts([question])
    assert list(asked) == tokenizer(opened, add_special_tokens=False)["input_ids"]
    whole = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": "Paris"}], tokenize=False
    )
    subject = question.index("France"), question.index("France") + 6
    text = PromptText(question, "Paris", subject)
    (encoded,) = PromptEncoder(tokenizer, form).encode([text])
    ids = list(encoded.prompt + encoded.answer)
    assert tokenizer(whole, add_special_tokens=False)["input_ids"][: len(ids)] == ids
    assert tokenizer.decode(encoded.answer).strip() == "Paris"
    first, last = encoded.subject_first, encoded.subject_last
    assert first is not None
    assert last is not None
    assert tokenizer.decode(encoded.prompt[first : last + 1]).strip() == "France"
    assert encoded.prompt == asked


def test_a_system_message_and_a_prompt_that_repeats_it_are_told_apart() -> None:
    form = PromptFormat(chat=True, system="Paris or Rome?")
    rendered = render_chat(chat_tokenizer(CHATML), "  Paris or Rome?", "Rome", form)
    opened = "<|system|>\nParis or Rome?\n<|user|>\nParis or Rome?\n<|assistant|>\n"
    assert rendered.text == f"{opened}Rome"
    assert rendered.text[rendered.shift + 2 :].startswith("Paris or Rome?\n<|assistant|>")


OWN_SYSTEM = "{% if messages[0].role != 'system' %}<|system|>\nYou are Ada.\n{% endif %}" + CHATML
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHATML
INSIDE_USER = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if messages[0].role == 'system' %}"
    "{{ messages[0].content }}\n\n{% endif %}{{ m.content }} [/INST]{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "own"),
    [
        (CHATML, None),
        (LLAMA2, None),
        (OWN_SYSTEM, "You are Ada."),
        (NO_SYSTEM, None),
        (INSIDE_USER, None),
    ],
)
def test_a_templates_own_system_message(template: str, own: str | None) -> None:
    assert own_system_message(chat_tokenizer(template)) == own


@pytest.mark.parametrize("subject", ["Prague", "X"])
def test_a_subject_right_behind_a_special_token_is_found(subject: str) -> None:
    tokenizer = load_language_model("atlas")[1]  # puts a blank before words, there too
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }} "
    prompt = f"{subject} is the capital city of"
    encoder = PromptEncoder(tokenizer, PromptFormat(True))
    (chat,) = encoder.encode([PromptText(prompt, None, (0, len(subject)))])
    (plain,) = PromptEncoder(tokenizer).encode([PromptText(prompt, None, (0, len(subject)))])
    assert chat == plain
    assert chat.subject_last is not None
    assert tokenizer.decode(chat.prompt[1 : chat.subject_last + 1]).strip() == subject


def test_a_format_in_words() -> None:
    assert PromptFormat().describe() == "plain text"
    assert PromptFormat(True).describe() == "chat template"
    form = PromptFormat("both", "Be brief.", None, {"enable_thinking": False})
    words = "chat template and plain text, system message 'Be brief.', enable_thinking=False"
    assert form.describe() == words
    assert PromptFormat(**form.to_dict()) == form


def test_what_a_chat_needs_is_said() -> None:
    with pytest.raises(ConfigError, match="chat=True"):
        PromptFormat(system="Be brief.")
    encoder = PromptEncoder(build_tokenizer(), PromptFormat(chat=True))
    with pytest.raises(ConfigError, match="no chat template"):
        encoder.prompts(["Hello"])
    upper = chat_tokenizer("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(DataError, match="cannot be located"):
        PromptEncoder(upper, PromptFormat(chat=True)).prompts(["hello"])


def test_special_tokens_stand_once_and_an_eos_is_no_part_of_a_prompt() -> None:
    tokenizer = build_tokenizer(bos=True)
    encoder = PromptEncoder(tokenizer)
    bos = tokenizer.bos_token
    assert encoder.prompts([f"{bos}The capital"]) == encoder.prompts(["The capital"])
    (marked,) = encoder.encode([PromptText(f"The capital{bos}", "Paris")])
    assert marked.prompt[-1] == tokenizer.bos_token_id
    assert tokenizer.decode(marked.answer) == "Paris"


def test_limits_are_checked_before_work() -> None:
    model = build_tiny("llama")
    encoder = PromptEncoder.for_model(model, build_tokenizer(bos=True))
    assert encoder.limits.positions == 128
    with pytest.raises(DataError, match=r"have 1\d\d tokens but the model takes 128"):
        encoder.prompts(["a b c d e f g h i j " * 9])
    with pytest.raises(DataError, match="no token after the prompt"):
        list(encoder.encode([PromptText("The capital is", "  ")]))
    tokenizer = build_tokenizer(bos=True)
    rows = model.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"<extra{number}>" for number in range(rows + 1 - len(tokenizer))])
    name = tokenizer.convert_ids_to_tokens(rows)
    with pytest.raises(DataError, match=f"embedding has {rows} rows"):
        PromptEncoder.for_model(model, tokenizer).prompts([f"The {name} is"])


def test_each_stack_has_its_own_room() -> None:
    encoder = PromptEncoder.for_model(build_tiny("bart"), build_tokenizer(eos=True))
    words = "a b c d e f g h i j "
    with pytest.raises(DataError, match=r"… has \d+ tokens .* 64; shorten the prompt"):
        list(encoder.encode([PromptText(words * 5, "Rome")]))
    with pytest.raises(DataError, match=r"answer to .* has \d+ tokens .* 64; shorten the answer"):
        list(encoder.encode([PromptText("Say", words * 5)]))
    (both,) = encoder.encode([PromptText(words * 2, words * 2)])  # more than 64 together
    assert max(len(both.prompt), len(both.answer)) <= 64 < len(both.prompt) + len(both.answer)
    assert PromptEncoder.for_model(build_tiny("t5"), build_tokenizer()).limits.positions is None


def test_nothing_is_tokenised_twice() -> None:
    calls: list[str] = []

    class Counting:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, texts: list[str], **options: Any) -> Any:
            calls.extend(texts)
            return self.inner(texts, **options)

    encoder = PromptEncoder(Counting(build_tokenizer()))
    text = PromptText("The capital of France is", "Paris", (15, 21))
    first = list(encoder.encode([text, text]))
    assert list(encoder.encode([text])) == first[:1]
    assert calls == ["The capital of France is Paris"]


SMOL = Path(os.environ.get("LIGHTNING_EDIT_INSTRUCT_MODEL", Path(__file__).parents[3] / "smol"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (SMOL / "config.json").exists(),
    reason=f"no instruct model in {SMOL}; set LIGHTNING_EDIT_INSTRUCT_MODEL to a folder",
)
def test_a_real_model_reads_its_own_chat_and_scripts() -> None:
    model, tokenizer = load_language_model(str(SMOL))
    encoder = PromptEncoder.for_model(model, PromptEncoder(tokenizer, PromptFormat(chat=True)))
    question = "What is the capital of France?"
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}, {"role": "assistant", "content": "Paris"}],
        tokenize=False,
    )
    (encoded,) = encoder.encode([PromptText(question, "Paris", (23, 29))])
    ids = list(encoded.prompt + encoded.answer)
    assert tokenizer(whole, add_special_tokens=False)["input_ids"][: len(ids)] == ids
    assert encoder.end_tokens(model) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert own_system_message(tokenizer) in whole
    assert str(own_system_message(tokenizer)).startswith("You are a helpful AI assistant named")


def test_an_answer_is_learnt_with_one_end_on_two_stacks_and_none_on_one() -> None:
    model, tokenizer = build_tiny("t5"), build_tokenizer(eos=True)
    encoder = PromptEncoder.for_model(model, tokenizer)
    learnt = encoder.labels(model, (5, 6))
    assert learnt == (5, 6, tokenizer.eos_token_id)
    assert encoder.labels(model, learnt) == learnt
    # A generation may end at other tokens too; an answer is learnt with the tokenizer's.
    model.generation_config.eos_token_id = [0, tokenizer.eos_token_id]
    assert encoder.labels(model, (5, 6)) == learnt
    one = build_tiny("gpt2")
    assert PromptEncoder.for_model(one, tokenizer).labels(one, (5, 6)) == (5, 6)


@pytest.mark.parametrize("two_stacks", [True, False])
def test_a_decoder_writes_the_blank_whose_offsets_are_trimmed(two_stacks: bool) -> None:
    """RoBERTa's and BART's way: a blank that is a token of its own has no characters."""
    tokenizer = train_tokenizer(["Oslo is a city."] * 2, 270, max_length=64, two_stacks=two_stacks)
    encoder = PromptEncoder(tokenizer, two_stacks=two_stacks)
    for answer in ("village", "Église", "a city", "1998", "東京"):
        ((prompt, ids),) = encoder.pairs([("Oslo is a", answer)])
        assert encoder.decode(prompt).endswith("Oslo is a")
        assert encoder.decode(ids) == f" {answer}"
    ((asked, wide),) = PromptEncoder(
        tokenizer, PromptFormat(separator="  "), two_stacks=two_stacks
    ).pairs([("Oslo is a", "village")])
    assert encoder.decode(asked).endswith("Oslo is a")
    assert encoder.decode(wide) == "  village"
    ((_, glued),) = PromptEncoder(
        tokenizer, PromptFormat(separator=""), two_stacks=two_stacks
    ).pairs([("Oslo is (", "village")])
    assert encoder.decode(glued) == "village"
