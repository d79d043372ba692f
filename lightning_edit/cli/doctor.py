"""``lightning-edit doctor``: what was found in a model, and what a method takes to edit it."""

import argparse
from collections.abc import Sequence


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-edit doctor",
        description="Show which parts of a language model editors find, and the memory each method "
        "needs. Reads the model's config only; no weights are loaded.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default="atlas",
        metavar="MODEL",
        help="atlas (default), the folder of a saved model, or a hub name",
    )
    parser.add_argument("--dtype", default="float32", help="type to load weights in (%(default)s)")
    parser.add_argument("--revision", default=None, help="branch, tag or commit of a hub model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report.

    Args:
        argv: Arguments after ``doctor``; the process's own when left out.

    Returns:
        0.

    Raises:
        ModelLoadError: If the model's config cannot be read.
        ArchitectureError: If its parts are not found.
    """
    arguments = _parser().parse_args(argv)
    # torch and transformers load only now, so that --help and a wrong option answer at once.
    from rich.console import Console

    from lightning_edit.cli.doctor_findings import final_editors, methods_table, parts, summary
    from lightning_edit.models.loading import build_empty
    from lightning_edit.models.view import resolve

    view = resolve(build_empty(arguments.model, arguments.dtype, arguments.revision))
    console = Console()
    console.print(summary(arguments.model, view))
    console.print(parts(view))
    console.print(methods_table(view, final_editors()))
    console.print(
        "weights: memory of the model. editing: an estimate of what a method holds beside it, such "
        "as key statistics and their factors, or its networks; activations of a pass come on top.",
        style="dim",
    )
    return 0
