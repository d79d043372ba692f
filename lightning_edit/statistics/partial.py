"""The sums of an unfinished pass, on disk, so that a kill costs only its last minute."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.exceptions import DataError
from lightning_edit.statistics.windows import Position, Window, changed
from lightning_edit.storage.tensors import write_tensors

_FORMAT = "lightning-edit-partial-statistics/1"

#: A save may take this share of the time between two.
_SHARE = 0.05


@dataclass(frozen=True)
class Progress:
    """How far a pass is.

    Args:
        window: Position in front of the window that is being worked on.
        passes: Forward passes done in it, by all processes.
        read: Chained hash of the documents with those of the window.
    """

    window: Position
    passes: int = 0
    read: str = ""

    def check(self, window: Window) -> None:
        """Compare the window that is worked on again with what it was.

        Raises:
            DataError: If its documents have changed.
        """
        if self.passes and window.after.read != self.read:
            raise changed(window.after.texts)


class PartialSums:
    """Keeps the states of metrics and the position that they belong to in one file.

    Args:
        path: The file; its name should depend on everything that changes the sums.
        every: Seconds between two saves. Where saving takes long, it is done less often, so that
            it takes no more than a twentieth of the time.
    """

    def __init__(self, path: Path, every: float = 60.0) -> None:
        self.path = path
        self.every = every
        self._due = time.monotonic() + every
        self._stop = False

    def stop_soon(self) -> None:
        """Ask for a save after the pass that is running, and for an end there."""
        self._stop = True

    def load(self, metrics: Mapping[str, Metric]) -> Progress:
        """Fill the metrics with what was saved, and return the position after it.

        Args:
            metrics: Fresh metrics by name.

        Returns:
            The position, the very beginning where nothing was saved.

        Raises:
            DataError: If the file is not one of these.
        """
        if not self.path.is_file():
            return Progress(Position())
        try:
            with safe_open(str(self.path), framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise DataError(f"{self.path} holds no sums of a pass; delete it to begin anew")
                for name, metric in metrics.items():
                    for state, zero in metric.metric_state.items():
                        # The value of a sum state is one tensor.
                        value = file.get_tensor(f"{name}/{state}")
                        setattr(metric, state, value.to(getattr(zero, "device", None)))
        except SafetensorError as error:
            raise DataError(
                f"{self.path} cannot be read ({error}); delete it to begin anew"
            ) from error
        window = Position.from_json(header["window"])
        return Progress(window, int(header["passes"]), header["read"])

    def save_when_due(self, metrics: Mapping[str, Metric], progress: Progress) -> None:
        """Save if the last save was long enough ago.

        Raises:
            KeyboardInterrupt: After a save that :meth:`stop_soon` has asked for.
        """
        if self._stop:
            self.save(metrics, progress)
            raise KeyboardInterrupt
        now = time.monotonic()
        if now < self._due:
            return
        self.save(metrics, progress)
        took = time.monotonic() - now
        self._due = time.monotonic() + max(self.every, took / _SHARE)

    def save(self, metrics: Mapping[str, Metric], progress: Progress) -> None:
        """Write the sums and their position.

        Args:
            metrics: By name; their states are sums.
            progress: What the sums contain.

        Raises:
            StatisticsWriteError: If the disk refuses.
        """
        tensors = {
            f"{name}/{state}": value
            for name, metric in metrics.items()
            for state, value in metric.metric_state.items()
            if isinstance(value, Tensor)  # a state that is a sum always is
        }
        header = {
            "format": _FORMAT,
            "window": progress.window.as_json(),
            "passes": str(progress.passes),
            "read": progress.read,
        }
        write_tensors(self.path, tensors, header)

    def discard(self) -> None:
        """Delete the file: the pass is done, or is to begin anew."""
        self.path.unlink(missing_ok=True)
