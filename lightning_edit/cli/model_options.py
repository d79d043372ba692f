"""Options of verbs without a Trainer that name a language model. Importing this loads no torch."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from lightning_edit.cli.option_types import boolean

if TYPE_CHECKING:  # --help must not import torch
    from lightning_edit.models.prompt_encoder import PromptEncoder


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a language model and say how it is asked.

    Args:
        parser: The verb's parser.
    """
    group = add_loading_options(parser)
    _add_switch(group, "--lm_chat", "true: ask through the model's chat template")
    group.add_argument("--lm_system", help="system message of the chat")
    group.add_argument(
        "--lm_chat_options", type=_variables, default={}, metavar="JSON",
        help='variables of the chat template, such as \'{"enable_thinking": false}\'',
    )  # fmt: skip
    _add_switch(group, "--lm_end_answers", "true: write answers with their end")


def add_loading_options(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Add the options that name a language model, and say how and where it is loaded.

    Args:
        parser: The verb's parser.

    Returns:
        The group of these options.
    """
    group = parser.add_argument_group("language model")
    group.add_argument("--lm", default="atlas", help="atlas, atlas-t5, a folder, or a hub name")
    group.add_argument("--lm_dtype", default="float32", help="type of its weights (%(default)s)")
    _add_switch(group, "--lm_bos", "true: put BOS before every text")
    add_trust_option(group)
    group.add_argument("--lm_revision", help="revision on the hub")
    group.add_argument("--device", help="such as cuda:0; default: a GPU where there is one")
    return group


def add_unedited_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a verb that reads a run and loads the model that the run has edited.

    Args:
        parser: The verb's parser.
    """
    parser.add_argument("--model", help="path of the unedited model (default: as in the run)")
    add_trust_option(parser)


def add_trust_option(parser: "argparse._ActionsContainer") -> None:
    """Add ``--lm_trust_remote_code``.

    Args:
        parser: A parser or a group of its options.
    """
    _add_switch(parser, "--lm_trust_remote_code", "true: run the Python code that the model brings")


def _add_switch(parser: "argparse._ActionsContainer", name: str, text: str) -> None:
    parser.add_argument(name, type=boolean, nargs="?", const=True, default=False, help=text)


def load_model(options: argparse.Namespace) -> tuple[Any, "PromptEncoder"]:
    """Load the language model of :func:`add_model_options` on its device.

    Args:
        options: The parsed options.

    Returns:
        The model, and its tokenizer with the format of prompts.
    """
    import torch

    from lightning_edit.models.loading import load_language_model
    from lightning_edit.models.prompt_encoder import PromptEncoder
    from lightning_edit.models.prompt_format import PromptFormat

    found, tokenizer = load_language_model(
        options.lm,
        options.lm_dtype,
        options.lm_revision,
        options.lm_bos,
        options.lm_trust_remote_code,
    )
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = found  # transformers' stub of `to` wants no str
    model.to(device)
    form = PromptFormat(
        options.lm_chat, options.lm_system, None, options.lm_chat_options, options.lm_end_answers
    )
    return model, PromptEncoder.for_model(model, PromptEncoder(tokenizer, form))


def _variables(value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {value!r}")
    return found
