"""One folder for everything that a run writes: ``--run``, also for loggers and checkpoints."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import ConfigError
from lightning_edit.storage.checkpoint_file import read_checkpoint

#: Stands for the run's folder in the argument ``save_dir`` of a logger.
RUN = "RUN"
#: Loggers that need a folder.
_WITH_FOLDER = ("CSVLogger", "TensorBoardLogger")
#: Checkpoints that are found by name.
FOUND_BY_NAME = ("best", "last")


def name_save_dir(argv: Sequence[str]) -> list[str]:
    """Add ``save_dir`` after a logger that needs one, so that its bare name is enough.

    Args:
        argv: Arguments of a verb.

    Returns:
        The arguments; the folder is the run's, as :func:`place_in_run` resolves it.
    """
    words = list(argv)
    if any(word.startswith("--trainer.logger.") and "save_dir" in word for word in words):
        return words
    named: list[str] = []
    for place, word in enumerate(words):
        named.append(word)
        before = words[place - 1] if place else ""
        value = word.partition("=")[2] if "=" in word else word
        option = word.partition("=")[0] if "=" in word else before
        if option.rstrip("+") == "--trainer.logger" and value.rpartition(".")[2] in _WITH_FOLDER:
            named.append(f"--trainer.logger.save_dir={RUN}")
    return named


def place_in_run(trainer: Any, run: str) -> None:
    """Put loggers and checkpoints without a folder of their own into the run's folder.

    Args:
        trainer: Configuration of the Trainer; it is changed in place.
        run: The run's folder.
    """
    for logger in _classes(trainer.logger):
        arguments = logger.get("init_args")
        if arguments is not None and arguments.get("save_dir") == RUN:
            arguments["save_dir"] = run
    for callback in _classes(trainer.callbacks):
        arguments = callback.get("init_args")
        is_checkpoint = callback.get("class_path", "").endswith(".ModelCheckpoint")
        if is_checkpoint and arguments is not None and arguments.get("dirpath") is None:
            arguments["dirpath"] = str(Path(run) / "checkpoints")


def _classes(value: Any) -> Iterator[Any]:
    """Yield the configured classes of an option that takes one class or several."""
    listed = value if isinstance(value, list) else [value]
    yield from (one for one in listed if hasattr(one, "class_path"))


def find_checkpoint(run: Path, name: str) -> str:
    """Find the best or last checkpoint of a training by its run folder.

    Args:
        run: The run's folder.
        name: ``best``, by the monitored score of its checkpoint callback, or ``last``.

    Returns:
        Path of the checkpoint.

    Raises:
        ConfigError: If the folder has none.
    """
    folder = run / "checkpoints"
    last = max(folder.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    if name == "last" and last is not None:
        return str(last)
    if name == "best" and (folder / "best.ckpt").exists():
        return str(folder / "best.ckpt")
    for path in [last, *sorted(folder.glob("*.ckpt"))]:
        best = None if path is None or name == "last" else _best_of(path)
        if best is not None:
            return best
    raise ConfigError(
        f"--ckpt_path {name}: {folder} has no checkpoint of a training that names its {name} one; "
        "give the folder of the training with --run, or the path of the checkpoint"
    )


def _best_of(path: Path) -> str | None:
    """Return the best checkpoint that a checkpoint's own callback state names, where it exists."""
    content = read_checkpoint(path, "give --ckpt_path the path of another one")
    for state in content.get("callbacks", {}).values():
        best = Path(state.get("best_model_path") or "")
        if best.name:
            here = path.parent / best.name  # the folder may have moved
            return str(here if here.exists() else best)
    return None
