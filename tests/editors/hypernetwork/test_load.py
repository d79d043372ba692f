"""`load_from_checkpoint` builds the trained network before a language model is there."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import MEND, ROME, Editor
from lightning_edit.editors.hypernetwork.base import HypernetworkEditor
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import CheckpointError
from lightning_edit.models.loading import _prepend_bos
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditRequest
from tests.editors.hypernetwork.mending import trainer
from tests.models.tiny import build_tiny, build_tokenizer
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
FACT = EditRequest("france", "The capital of France is", "Lyon", "France", "Paris")


def trained(path: Path, family: str = "llama", **options: Any) -> tuple[MEND, Any, Any]:
    model, tokenizer = build_tiny(family).requires_grad_(False), build_tokenizer()
    editor = MEND(rank=4, lr=1e-2, step_size=0.1, seed=3, **options)
    editor.bind(model, tokenizer)
    run = trainer(path.parent, max_steps=2)
    run.fit(editor, torch.utils.data.DataLoader([FACT] * 4, collate_fn=list))  # type: ignore[arg-type]
    run.save_checkpoint(path)
    return editor, model, tokenizer


def dense(editor: MEND) -> dict[str, torch.Tensor]:
    delta = editor.edit(encode_batch(editor.tokenizer, [FACT]))
    return {name: update.dense() for name, update in delta.weights.items()}


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", [MEND, HypernetworkEditor, Editor])
def test_the_loaded_editor_is_the_trained_one(
    tmp_path: Path, family: str, kind: type[Editor], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mend.ckpt"
    editor, model, tokenizer = trained(path, family, layers=[1])
    loaded = kind.load_from_checkpoint(path)
    assert isinstance(loaded, MEND)
    assert loaded.is_trained
    assert (loaded.rank, loaded.seed) == (4, 3)
    loaded.bind(model, tokenizer)
    given = kind.load_from_checkpoint(path, language_model=(model, tokenizer))
    wanted = dense(editor)
    assert {name.split(".")[2] for name in wanted} == {"1"}
    for other in (loaded, given):
        found = dense(other)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not [r for r in caplog.records if r.name.startswith("lightning_edit")]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_another_language_model_is_named_at_bind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mend.ckpt"
    trained(path)
    other = build_tiny("llama").requires_grad_(False)
    with torch.no_grad():
        other.get_input_embeddings().weight[0, 0] += 1
    tokenizer = build_tokenizer()
    _prepend_bos("tiny", tokenizer)
    for load in (
        lambda: MEND.load_from_checkpoint(path).bind(other, tokenizer),
        lambda: MEND(checkpoint=str(path)).bind(other, tokenizer),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="lightning_edit"):
            load()
        assert "MEND was trained on another language model: its weights are other" in caplog.text
        assert "it reads texts with BOS before them, not without" in caplog.text


def test_the_position_of_an_edit_run_is_no_editor(tmp_path: Path) -> None:
    edits = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    edits.edit(editor, ToyData(3), run=str(tmp_path), modes=("tf",))
    last = tmp_path / "checkpoints" / "last.ckpt"
    edits.save_checkpoint(last)
    for kind in (MEND, ROME, Editor):
        with pytest.raises(CheckpointError, match=r"position of an edit run.*EditedModel\.open"):
            kind.load_from_checkpoint(last)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_an_editor_of_another_class_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "mend.ckpt")
    with pytest.raises(CheckpointError, match=r"holds a trained MEND, not a ROME; use MEND\.load"):
        ROME.load_from_checkpoint(tmp_path / "mend.ckpt")


def test_validate_of_an_untrained_editor_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    editor = MEND(rank=4)
    editor.bind(build_tiny("llama").requires_grad_(False), build_tokenizer())
    batches: Any = torch.utils.data.DataLoader([FACT] * 3, collate_fn=list)  # type: ignore[arg-type]
    for loop in (trainer(tmp_path).validate, trainer(tmp_path).test):
        caplog.clear()
        (found,) = loop(editor, batches, verbose=False)
        assert any(name.endswith("reliability/em@tf") for name in found)
        said = [r.getMessage() for r in caplog.records if r.name.startswith("lightning_edit")]
        assert len(said) == 1
        assert "MEND is not trained" in said[0]
