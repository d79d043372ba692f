"""``lightning-edit doctor``: editable modules of a model, and the memory each editor needs."""

import argparse
import shlex
from collections.abc import Sequence

from lightning_edit.cli.model_options import add_trust_option


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-edit doctor",
        description="Show which parts of a language model editors find, and the memory each method "
        "needs. Reads the model's config and tokenizer only; no weights are loaded.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default="atlas",
        metavar="MODEL",
        help="atlas (default), atlas-t5, the folder of a saved model, or a hub name",
    )
    parser.add_argument("--dtype", default="float32", help="type to load weights in (%(default)s)")
    parser.add_argument("--revision", default=None, help="branch, tag or commit of a hub model")
    add_trust_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit doctor``.

    Args:
        argv: Arguments after ``doctor``; ``None`` reads ``sys.argv``.

    Returns:
        0.

    Raises:
        ModelLoadError: If the model's config cannot be read.
        ArchitectureError: If an editable module is not found.
    """
    arguments = _parser().parse_args(argv)
    # torch and transformers are imported late, so that --help and usage errors stay fast.
    from lightning_edit.cli.doctor_auto import auto_table
    from lightning_edit.cli.doctor_findings import (
        chat_row,
        final_editors,
        methods_table,
        parts_table,
        summary_table,
    )
    from lightning_edit.exceptions import ModelLoadError
    from lightning_edit.models.loading import build_empty, load_tokenizer
    from lightning_edit.models.view import resolve
    from lightning_edit.report.console import VisibleConsole

    view = resolve(
        build_empty(
            arguments.model,
            arguments.dtype,
            arguments.revision,
            arguments.lm_trust_remote_code,
        )
    )
    console = VisibleConsole()
    try:
        tokenizer = load_tokenizer(
            arguments.model, arguments.revision, arguments.lm_trust_remote_code
        )
    except ModelLoadError:
        tokenizer = None  # the structure can be shown without one, and the table says so
    console.print(summary_table(arguments.model, view, chat_row(tokenizer)))
    console.print(parts_table(view))
    console.print(methods_table(view, final_editors()))
    console.print(
        "weights: memory of the model. editing: estimated additional memory of a method, such "
        "as key statistics and their factors, or its networks; activations "
        "of a forward pass are not included.",
        style="dim",
    )
    console.print(auto_table(view, final_editors()))
    console.print(
        "Of a number that is given, nothing is chosen. The rules: docs/settings.md.", style="dim"
    )
    named = shlex.quote(arguments.model)
    if arguments.dtype != "float32":
        named += f" --lm_dtype {shlex.quote(arguments.dtype)}"
    if arguments.revision is not None:
        named += f" --lm_revision {shlex.quote(arguments.revision)}"
    if arguments.lm_trust_remote_code:
        named += " --lm_trust_remote_code true"
    method = "FTM" if view.encoder_blocks else "MEMIT"
    console.print(
        f"Settings for this model: lightning-edit tune {method} --lm {named} "
        "--data JSONLDataModule --data.path facts_to_tune_on.jsonl",
        markup=False,
        soft_wrap=True,
    )
    return 0
