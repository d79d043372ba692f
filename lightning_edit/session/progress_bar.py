"""Progress bar of an edit session: edit batches, and the steps inside one that takes long."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from lightning_edit.editors.base import Editor

#: Seconds after which the steps inside an edit are shown; quicker edits would only flicker.
PATIENCE = 1.0


class EditProgressBar(RichProgressBar):
    """Progress bar that counts edit batches, without the version number of a training.

    In a terminal a second line shows the optimiser steps inside an edit, with the time that they
    will take: a batch of a thousand facts is one step of the first line, and takes minutes.
    """

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme())
        self._steps: Any = None
        self._done = 0
        self._begin = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar, and listen to the editor if the bar is in a terminal.

        Args:
            trainer: Lightning's.
            pl_module: The session.
        """
        super().on_train_start(trainer, pl_module)
        self._steps = None
        editor = getattr(pl_module, "editor", None)
        if isinstance(editor, Editor) and self._in_terminal:
            editor.report_progress_to(self.show_steps)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop the bar, and listening.

        Args:
            trainer: Lightning's.
            pl_module: The session.
            stage: ``fit``.
        """
        super().teardown(trainer, pl_module, stage)
        editor = getattr(pl_module, "editor", None)
        if isinstance(editor, Editor):
            editor.report_progress_to(None)

    @property
    def _in_terminal(self) -> bool:
        return self.progress is not None and self.progress.console.is_terminal

    def show_steps(self, done: int, total: int) -> None:
        """Show the steps inside an edit, once it takes long.

        Args:
            done: Steps so far; fewer than before when another search begins.
            total: Most steps that there can be.
        """
        if self.progress is None:
            return
        if self._steps is None:
            self._steps = self._add_task(total, "Steps", visible=False)
            self._done = done
            self._begin = time.monotonic()
        if done < self._done:
            self.progress.reset(self._steps, total=total, visible=False)
            self._begin = time.monotonic()
        self._done = done
        late = time.monotonic() - self._begin >= PATIENCE
        shown = late and done < total
        self.progress.update(self._steps, completed=done, total=total, visible=shown)
        self.refresh()

    def _get_train_description(self, current_epoch: int) -> str:
        return "Editing"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the progress-bar metrics without the version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return dict(metrics)
