"""``lightning-edit export``: write a run's edits as adapter, checkpoint, delta or editor."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_edit.cli.model_options import add_unedited_model_options
from lightning_edit.cli.option_types import positive
from lightning_edit.exceptions import LightningEditError
from lightning_edit.functional.visible import visible

_DESCRIPTION = """\
Ship the edits of a run.

  peft    a LoRA adapter; loads with PeftModel.from_pretrained on the unedited model
  merged  a full checkpoint with the edits in its weights
  delta   one small safetensors file with what the edits add to each weight
  runtime the editor with its edits, for those that act when the model is asked; loads with
          lightning_edit.load_edited
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser; imports nothing heavy, so that ``--help`` stays fast."""
    parser = argparse.ArgumentParser(
        "lightning-edit export",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--format", choices=("peft", "merged", "delta", "runtime"), default="peft")
    parser.add_argument("--out", type=Path, help="folder to write (default: RUN/export/FORMAT)")
    parser.add_argument(
        "--ids",
        nargs="+",
        metavar="ID",
        help="export these edits, also undone ones (default: all edits in force)",
    )
    parser.add_argument(
        "--max_rank",
        type=positive,
        metavar="N",
        help="largest LoRA rank of a layer; a larger update is truncated by singular values",
    )
    add_unedited_model_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit export``.

    Args:
        argv: Arguments after ``export``; ``None`` reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 after an error that the user can fix.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.max_rank is not None and options.format != "peft":
        parser.error("--max_rank is for --format peft; the other formats keep the whole update")
    try:
        # Imports torch, transformers and peft, which takes seconds.
        from lightning_edit.export.write import EXACT, export

        done = export(**vars(options))
    except LightningEditError as error:
        sys.stderr.write(visible(f"lightning-edit export: {error}\n"))
        return 2
    edits = "1 edit" if done.edits == 1 else f"{done.edits} edits"
    cut = "" if done.kept > EXACT else f", {done.kept:.2%} of the update kept"
    sys.stdout.write(visible(f"wrote {done.path} ({edits}, {done.size}{cut}): {done.code}\n"))
    return 0
