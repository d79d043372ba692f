"""Special tokens and fragments of chat templates, found in the texts of edits by their spelling.

A data file is checked without a tokenizer, so the list holds what published language models use.
"""

import re

_TOKEN = (
    r"<\|[^|<>\s]{1,40}\|>"  # <|endoftext|>, <|im_start|>, <|eot_id|>, <|assistant|>
    r"|<｜[^｜<>\s]{1,40}｜>"  # full width bars
    r"|</?s>|<(?:bos|eos|pad|unk|mask)>|<extra_id_\d+>"
    r"|<(?:start|end)_of_turn>"
    r"|\[(?:CLS|SEP|PAD|UNK|MASK|BOS|EOS|gMASK)\]"
    r"|\[/?INST\]|<</?SYS>>|\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\]"
)
_SPEAKERS = (
    r"^[ \t]*(?:\#{2,3}[ ]*)?(?:Human|Assistant|User|System|AI|Bot|USER|ASSISTANT|SYSTEM)[ ]?:"
    r"|^[ \t]*\#{2,3}[ ]*(?:Instruction|Response|Input|User|Assistant|System|Human)s?[ ]?:?[ \t]*$"
    r"|^[ \t]*\#{2,3}[ ]*(?:Instruction|Response|Input)s?[ ]?:"
    r"|^[ \t]*(?:用户|助手|系统|ユーザー|アシスタント)[:：]"
)
_ANY_TOKEN = re.compile(_TOKEN)
_FRAGMENT = re.compile(f"{_TOKEN}|{_SPEAKERS}", re.MULTILINE)


def is_special_token(text: str) -> bool:
    """Return whether a text is a special token of a language model, and nothing else.

    Args:
        text: The text, such as a target.

    Example:
        >>> is_special_token("<|endoftext|>"), is_special_token("</s>"), is_special_token("<b>")
        (True, True, False)
    """
    return _ANY_TOKEN.fullmatch(text.strip()) is not None


def special_token_in(text: str) -> str | None:
    """Return the first special token inside a text; ``None`` without one.

    Args:
        text: The text, such as a target.

    Example:
        >>> special_token_in("Rome</s>"), special_token_in("Rome")
        ('</s>', None)
    """
    found = _ANY_TOKEN.search(text)
    return None if found is None else found.group()


def template_fragment(prompt: str) -> str | None:
    """Return the first special token or fragment of a chat template in a prompt.

    Args:
        prompt: The prompt.

    Returns:
        The fragment as it stands there; ``None`` without one.

    Example:
        >>> template_fragment("[INST] Where is Rome? [/INST]"), template_fragment("Q: Rome?")
        ('[INST]', None)
    """
    found = _FRAGMENT.search(prompt)
    return None if found is None else found.group().strip()
