"""Command-line options of ``lightning-edit stats``. Loads no torch, so that ``--help`` is fast."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_edit.cli.model_options import add_loading_options
from lightning_edit.cli.option_types import positive


def _layers(value: str) -> list[int]:
    try:
        layers = json.loads(value)
    except json.JSONDecodeError:
        layers = None
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise argparse.ArgumentTypeError(f"expected a list such as '[1,2]', got {value!r}")
    return layers


def _threshold(value: str) -> tuple[str, float]:
    kind, _, bound = value.partition(":")
    try:
        number = float(bound)
    except ValueError:
        number = 0.0
    if kind not in ("relative", "absolute", "energy") or number <= 0:
        raise argparse.ArgumentTypeError(
            "expected relative:BOUND, absolute:BOUND or energy:BOUND with a bound above 0, got "
            f"{value!r}"
        )
    return kind, number


#: Option values of --quick.
_QUICK: dict[str, Any] = {"max_tokens": 20_000, "max_length": 128, "shrinkage": "diagonal"}
_DEFAULTS: dict[str, Any] = {"max_tokens": None, "max_length": 1024, "shrinkage": "none"}


def parse_options(given: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``stats``; explicit options override those of ``--quick``.

    Args:
        given: Arguments after ``stats``.
    """
    parser = _parser()
    arguments = parser.parse_args(given)
    for name, value in (_QUICK if arguments.quick else _DEFAULTS).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.text is None and arguments.projector is None:
        parser.error("--text is required: a .txt or .jsonl file, or the name of a data set")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-edit stats",
        description="Run a model over text once and save the second moments of its MLPs' inputs. "
        "Repeat the same command to resume an interrupted run.",
    )
    model = add_loading_options(parser)
    model.add_argument("--layers", type=_layers, help="blocks, such as '[1,2]'; default: all")
    text = parser.add_argument_group("text")
    text.add_argument(
        "--text",
        help="documents, one a line: .txt, or .jsonl with text; or a data set's name or folder",
    )
    text.add_argument("--text_config", help="configuration of a data set")
    text.add_argument("--text_split", default="train", help="split of a data set (%(default)s)")
    text.add_argument("--text_field", default="text", help="field with the text (%(default)s)")
    text.add_argument("--max_tokens", type=positive, help="stop after this many tokens")
    text.add_argument("--max_length", type=positive, help="tokens of a document (1024)")
    quality = parser.add_argument_group("quality")
    quality.add_argument(
        "--quick",
        action="store_true",
        help=f"{_QUICK['max_tokens']:,} tokens of many short documents, shrunk "
        f"(--max_tokens {_QUICK['max_tokens']} --max_length {_QUICK['max_length']} "
        f"--shrinkage {_QUICK['shrinkage']}); docs/statistics.md says what it costs",
    )
    quality.add_argument(
        "--shrinkage",
        choices=["none", "identity", "diagonal"],
        help="target of the shrinkage of moments of few tokens (none)",
    )
    quality.add_argument(
        "--projector",
        type=_threshold,
        metavar="KIND:BOUND",
        help="also store eigendecompositions for null spaces, and print their size below a bound: "
        "relative:0.1 (of the mean eigenvalue), absolute:0.02 or energy:0.3 (of their sum). "
        "Without --text: of the cached statistics",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--batch_tokens",
        type=positive,
        metavar="N",
        help="tokens of one forward pass (1024 on a CPU, to fit its cache, else 4096)",
    )
    run.add_argument(
        "--save_every",
        type=float,
        default=60.0,
        help="seconds between saves of the partial sums (%(default)g)",
    )
    run.add_argument(
        "--restart", action="store_true", help="discard the partial sums of an interrupted run"
    )
    run.add_argument(
        "--out",
        type=Path,
        help="write all layers to this file, for --model.statistics, and not to the cache",
    )
    return parser
