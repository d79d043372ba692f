"""What identifies a language model, for whatever belongs to one: checkpoints, shipped edits."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lightning_edit.models.loading import adds_bos
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.weights import weights_hash


def describe_language_model(model: Any, prompts: PromptEncoder) -> dict[str, Any]:
    """Return what identifies a language model, as plain values.

    Args:
        model: The language model.
        prompts: Its tokenizer, with the format of prompts.

    Returns:
        ``name``, ``dtype``, ``hash`` of the weights, ``bos`` (whether the tokenizer puts BOS before
        every text) and ``prompts``, their format.
    """
    return {
        "name": str(model.name_or_path),
        "dtype": str(model.dtype).removeprefix("torch."),
        "hash": weights_hash(model),
        "bos": adds_bos(prompts.tokenizer),
        "prompts": prompts.form.to_dict(),
    }


def sizes_hash(model: Any) -> str:
    """Return a hash of the names and shapes of a model's weights, without those of its vocabulary.

    Models with the same hash are of one architecture and size, whatever their values are, and
    whether or not tokens were added to one of them.

    Args:
        model: A Hugging Face language model.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    vocabulary = {id(one) for end in ends if end is not None for one in end.parameters()}
    sizes = sorted(
        (name, list(one.shape))
        for name, one in model.named_parameters()
        if id(one) not in vocabulary
    )
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def differences(stored: Mapping[str, Any], bound: Mapping[str, Any], made: str = "trained") -> str:
    """Say how a language model differs from the one that something was made on.

    Args:
        stored: Description of the one it was made on.
        bound: Description of the other.
        made: What was done on the stored one, for the words.

    Returns:
        The differences in words; empty if there are none, or if nothing was stored. The name alone
        is no difference: a folder may have moved.
    """
    said = []
    if stored.get("dtype", bound["dtype"]) != bound["dtype"]:
        said.append(f"its weights are {bound['dtype']}, not {stored['dtype']}")
    elif stored.get("hash", bound["hash"]) != bound["hash"]:
        said.append(
            f"its weights are other ones ({bound['name']}, {bound['hash'][:8]}; {made} on "
            f"{stored['name']}, {stored['hash'][:8]})"
        )
    if stored.get("bos", bound["bos"]) != bound["bos"]:
        here, there = ("with", "without") if bound["bos"] else ("without", "with")
        said.append(f"it reads texts {here} BOS before them, not {there} (--lm_bos)")
    if stored.get("prompts", bound["prompts"]) != bound["prompts"]:
        said.append(f"prompts are given as {bound['prompts']}, not as {stored['prompts']}")
        if bound["prompts"].get("think") is False and "think" not in stored["prompts"]:
            said.append("it was asked where its thoughts begin (PromptFormat(think=True))")
    return " and ".join(said)
