"""The verb ``stats``: collect the key statistics that closed-form editors need."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_edit.exceptions import DataError


def read_texts(path: Path) -> Iterator[str]:
    """Yield documents of a file, one a line.

    Args:
        path: Plain text, or JSONL (``.jsonl``) with a field ``text``.

    Raises:
        DataError: If there is no such file, or a line is not of its form.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if text := _text(path, number, line.strip()):
                    yield text
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a .txt or .jsonl file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); convert the file") from error


def _text(path: Path, number: int, line: str) -> str:
    if path.suffix != ".jsonl" or not line:
        return line
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not JSON ({error.msg}); one record a line"
        ) from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(
            f"{path}, line {number}: expected an object with a text in field `text`, "
            f"got {line[:60]!r}"
        )
    return text


def _layers(value: str) -> list[int]:
    try:
        layers = json.loads(value)
    except json.JSONDecodeError:
        layers = None
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise argparse.ArgumentTypeError(f"expected a list such as '[1,2]', got {value!r}")
    return layers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-edit stats",
        description="Run a model over text once and keep the second moments of its MLPs' inputs.",
    )
    parser.add_argument("--lm", default="atlas", help="atlas, a folder, or a hub name")
    parser.add_argument("--lm_dtype", default="float32", help="type of its weights")
    parser.add_argument(
        "--text", type=Path, required=True, help="documents, one a line: .txt, or .jsonl with text"
    )
    parser.add_argument("--layers", type=_layers, help="blocks, such as '[1,2]'; default: all")
    parser.add_argument("--max_tokens", type=int, help="stop after so many tokens")
    parser.add_argument("--max_length", type=int, default=1024, help="tokens of a document")
    parser.add_argument("--out", type=Path, help="also write all layers to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``stats``; ``None``: those of the process.

    Returns:
        Exit status.

    Raises:
        LightningEditError: What the user can mend; the caller prints it.
    """
    arguments = _parser().parse_args(argv)
    # Only now: the help must not wait for torch.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from lightning_edit.models.loading import load_language_model
    from lightning_edit.models.view import resolve
    from lightning_edit.statistics import collect, store

    model, tokenizer = load_language_model(arguments.lm, arguments.lm_dtype)
    view = resolve(model)
    layers = list(range(view.num_blocks)) if arguments.layers is None else arguments.layers
    columns = (BarColumn(), TextColumn("{task.completed:,.0f} tokens"), TimeRemainingColumn())
    console = Console(highlight=False)
    with Progress("collecting", *columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=arguments.max_tokens or _estimate(arguments.text))
        moments = collect(
            model,
            tokenizer,
            read_texts(arguments.text),
            layers,
            arguments.max_tokens,
            arguments.max_length,
            progress=lambda tokens: bar.advance(task, tokens),
        )
    paths = store(moments)
    if arguments.out is not None:
        moments.save(arguments.out)
        paths.append(arguments.out)
    console.print(f"{moments.tokens:,} tokens, layers {layers}")
    for path in paths:
        console.print(f"  {path}", soft_wrap=True)
    return 0


def _estimate(path: Path) -> int | None:
    """Guess a file's tokens for the progress bar: about four bytes each."""
    return path.stat().st_size // 4 if path.is_file() else None
