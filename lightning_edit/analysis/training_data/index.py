"""Index of training gradients on disk: blocks of texts by checkpoint, resumable, made once.

A folder holds ``index.json``, which names the model, the checkpoints, the training text and the
settings by their hashes, and one safetensors file for each checkpoint and block of texts. A block
is written whole or not at all, and its texts are always the same ones, so an index that was
interrupted has the bits of one that was not.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_edit.analysis.training_data.encoding import LossRows
from lightning_edit.analysis.training_data.gradients import (
    FactoredGradients,
    Gradients,
    ProjectedGradients,
    Projection,
    sample_gradients,
)
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.storage.atomic import write_atomic, write_error
from lightning_edit.storage.safetensors_files import to_safetensors

SCHEMA = "lightning-edit-gradient-index/1"
#: Name of the file that says what an index was made of.
INDEX_FILE = "index.json"
_INTACT = "Blocks that were written before are kept."


@dataclass(frozen=True)
class IndexSettings:
    """How gradients are taken and stored.

    Args:
        subset: Parameter subset: roles or patterns of linear layers.
        layers: Blocks of the model; ``None``: all.
        projection: Width of the random projection of either side of a gradient; ``None``: exact.
        seed: Seed of the projection.
        rows_per_pass: Most rows in a pass.
        block_size: Training texts in a file; bounds the memory that is needed at a time.
    """

    subset: tuple[str, ...] = ("mlp_down",)
    layers: tuple[int, ...] | None = None
    projection: int | None = None
    seed: int = 0
    rows_per_pass: int = 16
    block_size: int = 128

    def __post_init__(self) -> None:
        for name in ("projection", "rows_per_pass", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"expected {name} of 1 or more, got {value}; raise it")


class GradientIndex:
    """Gradients of training texts at several checkpoints, kept in a folder.

    Args:
        folder: The folder; made when the first block is written.
        settings: How gradients are taken and stored.
        modules: The linear layers of the parameter subset.
        identity: What identifies model, checkpoints and text, as plain values.

    Raises:
        ConfigError: If the folder holds the index of another model, text or settings.
        DataError: If its ``index.json`` is damaged.
    """

    def __init__(
        self,
        folder: Path,
        settings: IndexSettings,
        modules: Sequence[str],
        identity: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.modules = list(modules)
        content = {
            "schema": SCHEMA,
            **identity,
            "settings": asdict(settings),
            "modules": self.modules,
        }
        self.identity: dict[str, Any] = json.loads(json.dumps(content))
        self.hash = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        self._projection = (
            None if settings.projection is None else Projection(settings.projection, settings.seed)
        )
        self._check()

    def blocks(self, texts: int) -> list[range]:
        """Return the blocks of training texts.

        Args:
            texts: Number of texts.
        """
        size = self.settings.block_size
        return [range(begin, min(begin + size, texts)) for begin in range(0, texts, size)]

    def compute(self, model: Any, samples: Sequence[LossRows]) -> Gradients:
        """Compute gradients with the settings of the index.

        Args:
            model: The model, with a checkpoint's weights.
            samples: Losses of the samples.
        """
        return sample_gradients(
            model, samples, self.modules, self.settings.rows_per_pass, self._projection
        )

    def block(
        self, checkpoint: int, number: int, make: Callable[[], Gradients]
    ) -> tuple[Gradients, Tensor]:
        """Return a block's gradients and their norms from disk, or make and write them.

        Args:
            checkpoint: Number of the checkpoint.
            number: Number of the block.
            make: Computes the gradients.

        Raises:
            DataError: If the block's file is damaged, or belongs to another index.
            LedgerWriteError: If it cannot be written.
        """
        path = self.path(checkpoint, number)
        if path.is_file():
            return self._read(path)
        gradients = make()
        norms = gradients.norms()
        content = to_safetensors(gradients.tensors() | {"norms": norms}, {"index": self.hash})
        self._write(path, content)
        return gradients, norms

    def path(self, checkpoint: int, number: int) -> Path:
        """Return the file of a block.

        Args:
            checkpoint: Number of the checkpoint; 0 is the model before fine-tuning.
            number: Number of the block.
        """
        return self.folder / f"checkpoint-{checkpoint:03d}" / f"block-{number:05d}.safetensors"

    def _write(self, path: Path, content: bytes | bytearray) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            description = self.folder / INDEX_FILE
            if not description.exists():
                text = json.dumps(self.identity, ensure_ascii=False, indent=2) + "\n"
                write_atomic(description, text.encode())
            write_atomic(path, content)
        except OSError as error:
            raise write_error(error, path, _INTACT) from error

    def _read(self, path: Path) -> tuple[Gradients, Tensor]:
        remedy = "delete this file and run the command again, which makes it anew"
        try:
            with safe_open(path, framework="pt") as file:
                made_for = (file.metadata() or {}).get("index")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} is damaged or incomplete; {remedy}") from error
        if made_for != self.hash:
            raise DataError(f"{path} belongs to another index than {self.folder}; {remedy}")
        norms = tensors.pop("norms")
        kind = FactoredGradients if self.settings.projection is None else ProjectedGradients
        return kind.of_tensors(tensors), norms

    def _check(self) -> None:
        path = self.folder / INDEX_FILE
        if not path.exists():
            if any(self.folder.glob("checkpoint-*/*")):
                raise DataError(
                    f"{self.folder} holds blocks of an index, but no {INDEX_FILE}; give another "
                    "folder, or delete this one"
                )
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            assert isinstance(stored, dict)
        except (OSError, ValueError, AssertionError) as error:
            raise DataError(
                f"{path} is damaged; delete the folder {self.folder} and make the index anew"
            ) from error
        if said := _differences(stored, self.identity):
            raise ConfigError(
                f"{self.folder} is an index of something else: {said}; give what it was made of, "
                "or another folder"
            )


def _differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Say in words how an index differs from what is asked for; empty if it does not."""
    said = []
    if stored.get("schema") != current["schema"]:
        said.append(f"its format is {stored.get('schema')!r}, not {current['schema']!r}")
    for key, what in _PARTS.items():
        before, now = stored.get(key), current.get(key)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            pairs = [(one, before.get(one), now.get(one)) for one in now]
            other = [f"{a} {_short(b)}, not {_short(c)}" for a, b, c in pairs if b != c]
            said.append(f"{what} ({'; '.join(other)})")
        else:
            said.append(what)
    return " and ".join(said)


#: Parts of an index's description, in words.
_PARTS = {
    "language_model": "it was made with another model",
    "checkpoints": "it was made with other checkpoints",
    "text": "the training text has changed",
    "settings": "it was made with other settings",
    "modules": "it was made of other modules",
}


def _short(value: Any) -> str:
    text = json.dumps(value)
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:8] if is_hash else text if len(text) <= 60 else f"{text[:60]}…"
