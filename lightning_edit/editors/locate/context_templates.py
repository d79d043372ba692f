"""Context templates: short texts that the model itself writes, to stand in front of a prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

#: Words with which MEMIT's authors let templates begin.
OPENINGS = ("The", "Therefore", "Because", "I", "You")
_TOP_K = 5


def with_bare(templates: Sequence[str]) -> list[str]:
    """Check templates and put the bare prompt first.

    Args:
        templates: Texts with one ``{}`` each.

    Raises:
        ValueError: If a text has none or several.
    """
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        raise ValueError(f"a context template needs one '{{}}' for the prompt, got {wrong[0]!r}")
    return ["{}", *(template for template in templates if template != "{}")]


@torch.no_grad()
def sample_templates(
    model: nn.Module, tokenizer: Any, openings: Sequence[str], lengths: Sequence[int], seed: int
) -> list[str]:
    """Let the model write one text for each opening and length, and make templates of them.

    Tokens are drawn from the five likeliest, as in the authors' code, but from a generator of its
    own with a seed: the same model and seed give the same templates.

    Args:
        model: The unedited language model.
        tokenizer: Its tokenizer.
        openings: First words; an empty text lets the model begin by itself.
        lengths: Tokens of each text, its opening included.
        seed: Seed of the draws.

    Returns:
        The bare ``"{}"`` and one template each.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [_opening(tokenizer, opening) for opening in openings]
    device = next(model.parameters()).device
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.long)
    while any(len(ids) < length for ids, length in zip(rows, lengths, strict=True)):
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        output = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        last = output.logits[torch.arange(len(rows)), mask.sum(1) - 1].float().cpu()
        last[:, special] = -torch.inf
        best, tokens_of = last.topk(_TOP_K, dim=-1)
        drawn = torch.multinomial(best.softmax(-1), 1, generator=generator)
        new = tokens_of.gather(1, drawn).squeeze(1).tolist()
        rows = [
            [*tokens, token] if len(tokens) < length else tokens
            for tokens, token, length in zip(rows, new, lengths, strict=True)
        ]
    written = (tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in rows)
    # Braces would be taken for places to fill in.
    clean = (text.replace("{", " ").replace("}", " ") for text in written)
    return with_bare([f"{text}. {{}}" for text in clean])


def _opening(tokenizer: Any, opening: str) -> list[int]:
    """Return the tokens a text begins with: at least one, for the model to continue."""
    ids = list(tokenizer(opening)["input_ids"]) if opening else []
    if ids:
        return ids
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [begin] if begin is not None else list(tokenizer(OPENINGS[0])["input_ids"])
