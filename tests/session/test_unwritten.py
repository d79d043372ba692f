"""Edits that did not write their answer are named at the end, with what to turn."""

import logging
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.editors import FT, FTM, MEND, RECT, AlphaEdit, OneLI, UltraEdit
from lightning_edit.editors.base import Editor
from lightning_edit.editors.gradient import base
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.session.unwritten import say_unwritten, unwritten
from tests.toy import ToyData, toy_model, toy_tokenizer


def row(
    name: str, before: float, after: float, right: float = 0.0, kind: str = "rewrite"
) -> dict[str, Any]:
    measures = {"nll@tf": after, "answer@gen": right}
    return {
        "edit_id": name, "kind": kind, "measures": measures,
        "pristine": {"measures": {"nll@tf": before}},
    }  # fmt: skip


def test_what_moved_and_what_did_not() -> None:
    rows = [
        row("same", 5.0, 5.0),
        row("closer", 5.0, 4.6),
        row("written", 5.0, 0.1, right=1.0),
        row("known", 0.1, 0.1, right=1.0),
        row("half", 5.0, 2.0),
        row("half", 5.0, 5.0, kind="rephrase"),
        row("lost", 5.0, 0.1, right=1.0),
        row("lost", 5.0, 6.0),
        row("broken", 5.0, float("nan")),
        {"edit_id": "generated only", "kind": "rewrite", "measures": {"answer@gen": 0.0}},
    ]
    assert unwritten(rows) == (["same", "closer", "lost", "broken"], ["half"], 7, [])


def test_answers_without_the_end_that_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(name, 5.0, 0.1, right=1.0) for name in ("ends", "goes on", "not generated")]
    rows[0]["measures"]["em@gen"], rows[1]["measures"]["em@gen"] = 1.0, 0.0
    assert unwritten(rows) == ([], [], 3, ["goes on"])
    say_unwritten(rows, FTM())
    assert not caplog.messages
    say_unwritten(rows, FTM(), end_answers=True)
    assert "1 of 3 edits wrote their answer but not its end" in caplog.text
    assert "goes on from it (goes on)" in caplog.text


@pytest.mark.parametrize(
    ("editor", "told"),
    [
        (UltraEdit(eta=1e-9), "raise eta (1e-09); or let `lightning-edit tune UltraEdit`"),
        (FTM(lr=1e-9, layers=[0]), "with FTM: raise lr (1e-09), steps (25)"),
        (
            FT(lr=1e-9, layers=[0]),
            'have several tokens, give objective="target_new" (FTM); or let',
        ),
    ],
)
def test_a_run_says_so(
    editor: Editor, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    editor.bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, enable_progress_bar=False)
    with caplog.at_level(logging.WARNING, "lightning_edit.session.unwritten"):
        trainer.edit(editor, ToyData(3), protocol="single", run=str(tmp_path / "run"))
    said = [message for message in caplog.messages if "hardly moved" in message]
    assert len(said) == 1
    assert said[0].startswith("3 of 3 edits hardly moved their own target")
    assert told in said[0]


def test_a_wrapped_editors_settings_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """First the wrapper's own, then its host's."""
    say_unwritten([row("a\x1b[31m", 5.0, 5.0)], RECT(UltraEdit(eta=1e-6), kept=0.4))
    (message,) = caplog.messages
    assert "To write more with RECT: raise kept (0.4), eta (1e-06)" in message
    say_unwritten([row("a", 5.0, 5.0)], OneLI(UltraEdit(eta=1e-6), alpha=0.5))
    assert "with OneLI: raise alpha (0.5), eta (1e-06)" in caplog.messages[-1]
    say_unwritten([row("a", 5.0, 5.0)], OneLI(UltraEdit(eta=1e-6), alpha=1.0))
    assert "with OneLI: raise eta (1e-06)" in caplog.messages[-1]
    assert "\x1b" not in message
    say_unwritten([row("a", 5.0, 0.1, right=1.0)], UltraEdit())
    assert len(caplog.messages) == 3


def test_most_edits_moved_their_target_and_none_reached_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """ROME with an absolute rate, on a model whose states are large: no message said so."""
    say_unwritten(
        [row("a", 14.0, 5.0), row("b", 14.0, 4.0), row("c", 9.0, 9.0)], UltraEdit(eta=1e-6)
    )
    (message,) = caplog.messages
    assert "1 of 3 edits hardly moved" in message
    assert "2 of 3 edits made the new answer more probable than before" in message
    assert "(a, b)" in message
    assert "raise eta (1e-06)" in message
    most = [row(str(n), 9.0, 0.1, right=1.0) for n in range(2)]
    say_unwritten([*most, row("a", 14.0, 5.0)], UltraEdit(eta=1e-6))
    assert len(caplog.messages) == 1


def test_what_auto_chose_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is to raise a rate must know from where."""
    monkeypatch.setattr(base, "STEP_REACH", 1e-9)
    editor = FTM(layers=[0], steps=2).bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, enable_progress_bar=False)
    trainer.edit(editor, ToyData(2), protocol="single", run=str(tmp_path / "run"))
    (said,) = [message for message in caplog.messages if "hardly moved" in message]
    assert f"raise lr ({editor.chosen['lr']:g}), steps (2)" in said


def test_what_is_turned_makes_the_editor_write_more(caplog: pytest.LogCaptureFixture) -> None:
    """A wider null space has more directions to write in; a trained editor has nothing to turn."""
    say_unwritten([row("a", 5.0, 5.0)], AlphaEdit(10.0, 0.1))
    say_unwritten([row("a", 5.0, 5.0)], MEND())
    wider, trained = caplog.messages
    assert "null_threshold (0.1); lower norm_weight (10)" in wider
    assert "train it longer" in trained
    assert "tune MEND" not in trained
