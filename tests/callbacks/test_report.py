"""ReportCallback: a page at the end of our runs, the numbers at the end of others."""

import json
from pathlib import Path

import pytest

from lightning_edit.callbacks import CollapseCallback, MeasurementCallback, ReportCallback
from lightning_edit.exceptions import ConfigError
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.storage.run_folder import RunFolder
from tests.callbacks.foreign import FineTuning, loader, trainer
from tests.callbacks.planted import toy_texts
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]


def edit(run: Path, *others: MeasurementCallback) -> None:
    watch = others or (CollapseCallback(texts=toy_texts(4), generations=1),)
    trainer = EditTrainer(
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[ReportCallback(), *watch],
    )
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    trainer.edit(editor, ToyData(3), run=str(run), modes=("tf",))


def test_our_loop_ends_with_a_page(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    edit(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "ToyEditor" in page
    assert "Perplexity" in page


class LateWriter(CollapseCallback):
    """Writes a file of its own when the run is over, as `RippleCallback` does."""

    def on_results(self, folder: RunFolder) -> None:
        (folder.path / "late.jsonl").write_text("{}\n")


def test_the_page_is_made_after_all_others_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(
        ReportCallback,
        "on_results",
        lambda _, folder: seen.append((folder.path / "late.jsonl").exists()),
    )
    edit(tmp_path, LateWriter(texts=toy_texts(4), generations=1))
    assert seen == [True]


def test_a_page_that_cannot_be_written_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "report.html").mkdir()
    with caplog.at_level("WARNING", logger="lightning_edit"):
        edit(tmp_path)
    assert "no page was written" in caplog.text
    assert (tmp_path / "results.json").exists()


def test_other_trainings_leave_their_numbers(tmp_path: Path) -> None:
    texts = ["The capital of Italy is Rome", "Lyon lies in France"]
    watch = CollapseCallback(texts=texts, generations=1, max_new_tokens=3)
    run = trainer(tmp_path, watch, ReportCallback(), max_epochs=1)
    run.fit(FineTuning(), loader(), loader(1))
    record = json.loads((tmp_path / "measures.json").read_text())
    assert record["module"] == "FineTuning"
    assert record["steps"] == 4
    assert record["before"]["collapse/perplexity"] != record["after"]["collapse/perplexity"]
    with pytest.raises(ConfigError, match="what other callbacks measure"):
        trainer(tmp_path, ReportCallback()).fit(FineTuning(), loader(), loader(1))
