"""Context templates: short texts sampled from the model itself, used as prefixes of a prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_edit.exceptions import NotFiniteError
from lightning_edit.functional.padding import pad
from lightning_edit.inference.answer_rows import start_tokens

#: First words of the templates in MEMIT's authors' code.
OPENINGS = ("The", "Therefore", "Because", "I", "You")
_TOP_K = 5


def with_bare_prompt(templates: Sequence[str]) -> list[str]:
    """Validate context templates, and put the bare prompt ``"{}"`` first.

    Args:
        templates: Texts with one ``{}`` each.

    Raises:
        ValueError: If a text has no ``{}`` or several.
    """
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        raise ValueError(f"a context template needs one '{{}}' for the prompt, got {wrong[0]!r}")
    return ["{}", *(template for template in templates if template != "{}")]


@torch.no_grad()
def sample_templates(
    model: Any, tokenizer: Any, openings: Sequence[str], lengths: Sequence[int], seed: int
) -> list[str]:
    """Sample context templates from the model, one for each opening and length (top-k, k = 5).

    As in the authors' code, but with a separate seeded generator: the same model and seed give the
    same templates. With two stacks the encoder reads the opening, and the decoder goes on.

    Args:
        model: The unedited language model.
        tokenizer: Its tokenizer.
        openings: First words; an empty text starts from the BOS token.
        lengths: Length of each text in tokens, its opening included.
        seed: Seed of the sampling.

    Returns:
        The bare ``"{}"``, then one template per opening.

    Raises:
        NotFiniteError: If the model's outputs are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [_opening_ids(tokenizer, opening) for opening in openings]
    read = rows
    if two_stacks := bool(model.config.is_encoder_decoder):
        rows = [start_tokens(model) for _ in read]
        lengths = [
            max(0, length - len(ids)) + len(start)
            for length, ids, start in zip(lengths, read, rows, strict=True)
        ]
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.long)
    while any(len(ids) < length for ids, length in zip(rows, lengths, strict=True)):
        ends = torch.tensor([len(tokens) - 1 for tokens in rows])
        output = model(**_inputs(model, rows, read if two_stacks else None), use_cache=False)
        last = output.logits[torch.arange(len(rows)), ends].float().cpu()
        last[:, special] = -torch.inf
        best, tokens_of = last.topk(_TOP_K, dim=-1)
        chances = best.softmax(-1)
        if not bool(chances.isfinite().all()):
            raise NotFiniteError(
                "context templates are sampled from the model itself, but its outputs are not "
                "finite; load it in float32 or bfloat16, undo the edit that damaged it, or give "
                "context_templates"
            )
        drawn = torch.multinomial(chances, 1, generator=generator)
        new = tokens_of.gather(1, drawn).squeeze(1).tolist()
        rows = [
            [*tokens, token] if len(tokens) < length else tokens
            for tokens, token, length in zip(rows, new, lengths, strict=True)
        ]
    if two_stacks:
        rows = [[*ids, *tokens] for ids, tokens in zip(read, rows, strict=True)]
    written = (tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in rows)
    # Braces would be read as placeholders.
    clean = (text.replace("{", " ").replace("}", " ") for text in written)
    return with_bare_prompt([f"{text}. {{}}" for text in clean])


def _inputs(
    model: Any, rows: Sequence[Sequence[int]], read: Sequence[Sequence[int]] | None
) -> dict[str, Tensor]:
    """Return a model's arguments: one stack reads the rows, or the decoder with an encoder's."""
    device = model.get_input_embeddings().weight.device
    ids, mask = (part.to(device) for part in pad(rows))
    if read is None:
        return {"input_ids": ids, "attention_mask": mask}
    first, seen = (part.to(device) for part in pad(read))
    decoder = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    return {"input_ids": first, "attention_mask": seen, **decoder}


def _opening_ids(tokenizer: Any, opening: str) -> list[int]:
    """Return the token ids of an opening; BOS (or EOS) if it is empty, so at least one token."""
    ids = list(tokenizer(opening)["input_ids"]) if opening else []
    if ids:
        return ids
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [begin] if begin is not None else list(tokenizer(OPENINGS[0])["input_ids"])
