"""Which single edits make the model collapse."""

from pathlib import Path

import pytest

from lightning_edit.__main__ import main
from lightning_edit.callbacks import CollapseCallback
from lightning_edit.cli.hard_edits import rank_edits_by_perplexity
from lightning_edit.datamodules import JSONLDataModule
from lightning_edit.exceptions import DataError
from lightning_edit.session.trainer import EditTrainer
from tests.callbacks.planted import Destroys, toy_texts
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`")


def run(folder: Path, *callbacks: CollapseCallback, fail_at: str | None = None) -> None:
    editor = Destroys(ToyEditor(fail_at), ("fact-3", "fact-5"))
    trainer = EditTrainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, callbacks=list(callbacks)
    )
    trainer.edit(
        editor.bind(toy_model(), toy_tokenizer()),
        ToyData(7),
        protocol="single",
        run=str(folder),
        modes=("tf",),
        checkpoint_every=2,
        ckpt_path="last" if (folder / "ledger").exists() else None,
    )


def watch() -> CollapseCallback:
    return CollapseCallback(texts=toy_texts(6), generations=1, max_new_tokens=2)


def test_hard_edits_become_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="planted"):
        run(tmp_path, watch(), fail_at="fact-4")
    run(tmp_path, watch())  # interrupted, and resumed
    assert main(["mine", str(tmp_path), "--show", "3"]) == 0
    text = capsys.readouterr().out
    assert "2 of 7 edits raise perplexity more than 2 times" in text
    assert text.count(" ×  perplexity") == 3
    data = JSONLDataModule(str(tmp_path / "hard.jsonl"))
    data.setup("edit")
    known = {request.id: request for request in toy_requests(7)}
    assert {r.id: r for r in data.edit_requests()} == {
        name: known[name] for name in ("fact-3", "fact-5")
    }
    worst = rank_edits_by_perplexity(tmp_path)
    assert {worst[0].ids, worst[1].ids} == {("fact-3",), ("fact-5",)}
    assert worst[0].ratio > 10 > 2 > worst[2].ratio


def test_a_run_that_measured_nothing_is_named(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(DataError, match=r"callbacks\+=CollapseCallback"):
        rank_edits_by_perplexity(tmp_path)
