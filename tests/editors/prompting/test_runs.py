"""Runs of text editors: the three protocols, a failure and a resume, the page."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.__main__ import main
from lightning_edit.editors import ICE, IKE, RAG
from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import DataError
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditBatch, EditRequest
from tests.toy import ToyData, toy_model, toy_requests, toy_tokenizer


class WithTraining(ToyData):
    """The made-up facts, and others to train on."""

    def load_split(self, split: str) -> list[EditRequest]:
        every = toy_requests(self.count + 6)
        return every[self.count :] if split == "train" else every[: self.count]


def edit(editor: PromptingEditor, run: Path, fail_at: str | None = None, **options: Any) -> str:
    model = toy_model()
    editor.bind(model, toy_tokenizer())
    find = editor.edit

    def failing(batch: EditBatch) -> Delta:
        if fail_at in batch.ids:
            raise RuntimeError("planted failure")
        return find(batch)

    editor.edit = failing  # type: ignore[method-assign]  # as a crash would
    trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    options = {"protocol": "sequential", "checkpoint_every": 2} | options
    trainer.edit(editor, WithTraining(6), run=str(run), **options)
    return weights_hash(model)


def found(run: Path) -> object:
    results = json.loads((run / "results.json").read_text())
    return results["points"], (run / "cases.jsonl").read_bytes()


@pytest.mark.parametrize("protocol", ["single", "batch", "sequential"])
def test_every_protocol_scores_with_the_texts_and_changes_no_weight(
    tmp_path: Path, protocol: str
) -> None:
    assert edit(RAG(k=1, threshold=None), tmp_path, protocol=protocol) == weights_hash(toy_model())
    assert len(Journal(tmp_path / "ledger").commits()) == 6
    rows = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    before = [json.loads(x) for x in (tmp_path / "baseline.jsonl").read_text().splitlines()]
    nll = {row["prompt"]: row["measures"]["nll@tf"] for row in before if row["kind"] == "rewrite"}
    after = {row["prompt"]: row["measures"]["nll@tf"] for row in rows if row["kind"] == "rewrite"}
    assert len(after) == 6
    assert all(after[prompt] != nll[prompt] for prompt in after)


@pytest.mark.parametrize("protocol", [pytest.param("single", marks=pytest.mark.slow), "sequential"])
def test_a_resumed_run_has_the_results_of_an_uninterrupted_one(
    tmp_path: Path, protocol: str
) -> None:
    def own() -> PromptingEditor:
        return IKE(k=1, order="easyedit") if protocol == "single" else ICE(newest=1)

    options: dict[str, Any] = {"protocol": protocol}
    if protocol == "sequential":
        options["eval_at"] = [1, 3, "end"]
    edit(own(), tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="planted"):
        edit(own(), tmp_path / "cut", fail_at="fact-4", **options)
    edit(own(), tmp_path / "cut", ckpt_path="last", **options)
    assert found(tmp_path / "cut") == found(tmp_path / "whole")


def test_demonstrations_are_the_training_split_unless_others_are_given(tmp_path: Path) -> None:
    editor = IKE(k=1, order="easyedit")
    edit(editor, tmp_path / "own", protocol="batch")
    assert [one.prompt for one in editor._records] == [one.prompt for one in toy_requests(12)[6:]]
    given = IKE(toy_requests(30)[28:], k=1, order="easyedit")
    edit(given, tmp_path / "given", protocol="batch")
    assert [one.prompt for one in given._records] == [one.prompt for one in toy_requests(30)[28:]]


def test_a_data_module_without_a_training_split_says_so(tmp_path: Path) -> None:
    from lightning_edit.datamodules import JSONLDataModule

    path = tmp_path / "facts.jsonl"
    path.write_text('{"prompt": "the capital of land1 is", "target": "city2"}\n')
    editor = IKE().bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(DataError, match="no training facts"):
        trainer.edit(editor, JSONLDataModule(str(path)), run=str(tmp_path / "run"))


@pytest.mark.slow
def test_the_command_line_edits_reports_and_undoes(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    short = ["--data", "AtlasDataModule", "--data.limit", "2", "--run", run]
    assert main(["edit", "--model", "RAG", "--model.k", "2", *short]) == 0
    assert main(["report", run]) == 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    (first, *_) = Journal(tmp_path / "run" / "ledger").active()
    assert main(["undo", run, "--ids", *first.ids]) == 0
    assert len(Journal(tmp_path / "run" / "ledger").active()) == 1
