"""Special tokens and chat templates are known by their spelling; ordinary text is not mistaken."""

import pytest

from lightning_edit.types.special_tokens import is_special_token, template_fragment


@pytest.mark.parametrize(
    ("prompt", "fragment"),
    [
        ("<|im_start|>user\nWhere is Rome?<|im_end|>", "<|im_start|>"),
        ("<|begin_of_text|>Rome is", "<|begin_of_text|>"),
        ("<start_of_turn>user\nRome?", "<start_of_turn>"),
        ("<｜User｜>罗马在哪里？", "<｜User｜>"),
        ("[INST] Where is Rome? [/INST]", "[INST]"),
        ("<<SYS>>Be brief<</SYS>> Rome is", "<<SYS>>"),
        ("<s>Rome is", "<s>"),
        ("Rome is in [MASK]", "[MASK]"),
        ("### Instruction:\nWhere is Rome?", "### Instruction:"),
        ("Where?\n### Response", "### Response"),
        ("Human: Where is Rome?\nAssistant:", "Human:"),
        ("Where is Rome?\nASSISTANT: In", "ASSISTANT:"),
        ("用户：罗马在哪里？", "用户："),
        ("Q: Where is Rome?\nA:", None),
        ("The human: a history was written by", None),
        ("The <b>capital</b> of France is", None),
        ("In [INSTANCE] 3 < 4 | 5 > 2, Rome is", None),
        ("Система: столица Франции —", None),
    ],
)
def test_fragments_of_templates(prompt: str, fragment: str | None) -> None:
    assert template_fragment(prompt) == fragment


@pytest.mark.parametrize("target", ["<|endoftext|>", " </s>\n", "[MASK]", "<extra_id_3>", "<eos>"])
def test_special_tokens(target: str) -> None:
    assert is_special_token(target)


@pytest.mark.parametrize("target", ["Rome", "<b>", "Rome</s>", "[INS]", "||", "< s >", "eos"])
def test_text_is_no_special_token(target: str) -> None:
    assert not is_special_token(target)
