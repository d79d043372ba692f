"""Partial sums of an interrupted statistics run, saved every minute to resume it exactly."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.exceptions import DataError
from lightning_edit.statistics.windows import Position, Window, changed_text_error
from lightning_edit.storage.tensors import write_tensors

_FORMAT = "lightning-edit-partial-statistics/1"

#: Maximum share of the run time that is spent on saving.
_MAX_SAVE_SHARE = 0.05


@dataclass(frozen=True)
class Progress:
    """Progress of a statistics run, to resume it within a window of documents.

    Args:
        window: Position before the current window.
        passes: Forward passes done in the window, by all processes.
        read: Chained hash of the documents, those of the window included.
    """

    window: Position
    passes: int = 0
    read: str = ""

    def check(self, window: Window) -> None:
        """Check that the documents of the resumed window have not changed.

        Raises:
            DataError: If they have changed.
        """
        if self.passes and window.after.read != self.read:
            raise changed_text_error(window.after.texts)


class PartialSums:
    """File of metric states and their position in the text, to resume an interrupted run.

    Args:
        path: The file; its name should depend on everything that changes the sums.
        every: Seconds between two saves. A slow save makes saves less frequent, so that saving
            takes no more than a twentieth of the time.
    """

    def __init__(self, path: Path, every: float = 60.0) -> None:
        self.path = path
        self.every = every
        self._due = time.monotonic() + every
        self._stop = False
        self._signal: int | None = None

    def request_stop(self, signal: int | None = None) -> None:
        """Request a save and a stop after the current forward pass.

        Args:
            signal: Number of the signal that asks for it; the ``KeyboardInterrupt`` carries it.
        """
        self._stop, self._signal = True, signal

    def load(self, metrics: Mapping[str, Metric]) -> Progress:
        """Restore the metric states from the file, and return their progress.

        Args:
            metrics: New metrics by name.

        Returns:
            The progress; the start of the text if nothing was saved.

        Raises:
            DataError: If it is not a file of partial sums.
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
                        # A sum state is one tensor.
                        value = file.get_tensor(f"{name}/{state}")
                        setattr(metric, state, value.to(getattr(zero, "device", None)))
            window = Position.from_json(header["window"])
            return Progress(window, int(header["passes"]), header["read"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self.path} cannot be read ({error}); delete it to begin anew"
            ) from error

    def save_when_due(self, metrics: Mapping[str, Metric], progress: Progress) -> None:
        """Save the partial sums if the interval since the last save has passed.

        Raises:
            KeyboardInterrupt: After a save requested by :meth:`request_stop`.
        """
        if self._stop:
            self.save(metrics, progress)
            raise KeyboardInterrupt(*([] if self._signal is None else [self._signal]))
        now = time.monotonic()
        if now < self._due:
            return
        self.save(metrics, progress)
        took = time.monotonic() - now
        self._due = time.monotonic() + max(self.every, took / _MAX_SAVE_SHARE)

    def save(self, metrics: Mapping[str, Metric], progress: Progress) -> None:
        """Write the partial sums and their progress to the file.

        Args:
            metrics: Metrics by name; their states are sums.
            progress: Progress that the sums belong to.

        Raises:
            StatisticsWriteError: If the write fails.
        """
        tensors = {
            f"{name}/{state}": value
            for name, metric in metrics.items()
            for state, value in metric.metric_state.items()
            if isinstance(value, Tensor)  # a sum state always is one
        }
        header = {
            "format": _FORMAT,
            "window": progress.window.as_json(),
            "passes": str(progress.passes),
            "read": progress.read,
        }
        write_tensors(self.path, tensors, header)

    def discard(self) -> None:
        """Delete the file of partial sums, when the run is done or restarted."""
        self.path.unlink(missing_ok=True)
