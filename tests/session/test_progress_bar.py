"""Steps inside an edit are told to whoever listens, and shown in a terminal alone."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import FTM, MEMIT, RECT, ROME, SIR, LoRAEdit
from lightning_edit.editors.base import Editor
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.session import progress_bar
from lightning_edit.session.progress_bar import EditProgressBar
from lightning_edit.session.trainer import EditTrainer
from tests.toy import ToyData, toy_model, toy_requests, toy_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]

# A clamp by rule searches some requests again, and then tells its steps again.
LOCATE: dict[str, Any] = {"layers": [1], "statistics": "identity", "steps": 4, "clamp": 0.75}
EDITORS: dict[str, tuple[Callable[[], Editor], int]] = {
    "FTM": (lambda: FTM(layers=[1], steps=3, threshold=0.0), 3),
    "LoRAEdit": (lambda: LoRAEdit(steps=3, threshold=0.0), 3),
    "MEMIT": (lambda: MEMIT(**LOCATE), 4),
    # Three requests, each a pass of its own.
    "MEMIT, in passes": (lambda: MEMIT(**LOCATE, rows_per_pass=1), 12),
    "RECT of MEMIT": (lambda: RECT(MEMIT(**LOCATE)), 4),
}


@pytest.mark.parametrize("name", EDITORS)
def test_steps_are_told_in_order_and_change_nothing(name: str) -> None:
    make, total = EDITORS[name]
    batch = encode_batch(toy_tokenizer(), toy_requests(3))
    told: list[tuple[int, int]] = []
    updates = []
    for listener in (None, lambda done, of: told.append((done, of))):
        editor = make().bind(toy_model(), toy_tokenizer())
        editor.report_progress_to(listener)
        updates.append(editor.edit(batch).weights)
    assert {of for _, of in told} == {total}
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert len(told) == total + 1
    assert all(one < two for one, two in pairwise(told))
    for one, two in zip(updates[0].values(), updates[1].values(), strict=True):
        assert torch.equal(one.dense(), two.dense())


def test_an_editor_that_searches_again_begins_again() -> None:
    editor = SIR(toy_requests(40)[30:], MEMIT(**LOCATE), threshold=0.01)
    editor.bind(toy_model(), toy_tokenizer())
    told: list[int] = []
    editor.report_progress_to(lambda done, _: told.append(done))
    editor.edit(encode_batch(toy_tokenizer(), toy_requests(2)))
    assert told.count(0) >= 1
    editor.report_progress_to(None)
    before = len(told)
    editor.edit(encode_batch(toy_tokenizer(), toy_requests(2)))
    assert len(told) == before


class Kept(EditProgressBar):
    """Keeps what is shown."""

    def __init__(self) -> None:
        super().__init__()
        kept.append(self)
        self.shown: list[tuple[float, bool]] = []

    def show_steps(self, done: int, total: int) -> None:
        super().show_steps(done, total)
        assert self.progress is not None
        task = self.progress.tasks[self._steps]
        self.shown.append((task.completed, task.visible))
        self.progress.refresh()  # a fast edit is over before the bar draws itself anew


kept: list[Kept] = []


@pytest.mark.parametrize(("terminal", "patience"), [(True, 0.0), (True, 1000.0), (False, 0.0)])
def test_a_terminal_shows_the_steps_of_a_long_edit(
    terminal: bool, patience: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("lightning_edit.session.trainer.EditProgressBar", Kept)
    monkeypatch.setattr(progress_bar, "PATIENCE", patience)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    kept.clear()
    editor = ROME(**LOCATE).bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, accelerator="cpu")
    trainer.edit(editor, ToyData(2), run=str(tmp_path), modes=("tf",))
    (bar,) = kept
    visible = [done for done, seen in bar.shown if seen]
    assert bool(bar.shown) == terminal
    # Two edits of four steps; a finished search is hidden.
    assert visible == ([0, 1, 2, 3] * 2 if terminal and patience == 0 else [])
    output = capsys.readouterr().out
    assert ("Steps" in output) == bool(visible)
    assert editor._progress_listener is None
