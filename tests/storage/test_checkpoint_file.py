"""Checkpoints of any wrong kind end in one sentence, and none of them runs code."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_edit.editors.hypernetwork.checkpoint import EditorCheckpoint
from lightning_edit.exceptions import CheckpointError, LightningEditError
from lightning_edit.session.checkpoint_io import PlainCheckpointIO
from lightning_edit.session.trainer import EditTrainer
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer


class Hostile:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch was-here",)


GOOD = {"pytorch-lightning_version": "2.6.0", "state_dict": {"a": torch.ones(100)}}


def truncated(path: Path) -> None:
    torch.save(GOOD, path)
    path.write_bytes(path.read_bytes()[:300])


def hostile(path: Path) -> None:
    torch.save(GOOD | {"x": Hostile()}, path)


def hostile_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile()))


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: None, "no such file"),
    (Path.touch, "is empty"),
    (Path.mkdir, "got a folder"),
    (os.mkfifo, "got a pipe"),
    (truncated, "damaged or incomplete"),
    (hostile, "that could run code"),
    (hostile_pickle, "that could run code"),
    (lambda path: path.write_text("lr: 0.1\n"), "was not loaded|damaged"),
    (lambda path: torch.save([1, 2], path), "got a list"),
    (lambda path: torch.save({"epoch": 3}, path), "another program|expected a trained editor"),
]
NAMES = ["absent", "empty", "folder", "pipe", "cut", "hostile", "pickle", "text", "list", "other"]


def sentence(error: BaseException) -> str:
    text = str(error)
    assert isinstance(error, LightningEditError)
    assert "weights_only" not in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("make", "words"), WRONG, ids=NAMES)
@pytest.mark.parametrize(
    "read",
    [PlainCheckpointIO().load_checkpoint, EditorCheckpoint.read],
    ids=["run", "editor"],
)
def test_wrong_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], object],
    words: str,
    read: Callable[[Path], object],
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=words) as caught:
        read(tmp_path / "last.ckpt")
    assert re.search("[Gg]ive (a|the) checkpoint", sentence(caught.value))
    assert not (tmp_path / "was-here").exists()


def test_a_path_with_a_nul(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no path of a file|no such file"):
        EditorCheckpoint.read(tmp_path / "a\0b")


def test_a_run_reads_its_checkpoints_so(tmp_path: Path) -> None:
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    hostile(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="could run code") as caught:
        trainer.edit(
            editor, ToyData(2), run=str(tmp_path / "run"), modes=("tf",),
            ckpt_path=str(tmp_path / "x.ckpt"),
        )  # fmt: skip
    sentence(caught.value)
