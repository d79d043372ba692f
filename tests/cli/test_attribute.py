"""``lightning-edit attribute``: from a run folder to a table, a file and a section of the page."""

import csv
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from shutil import copytree

import pytest

from lightning_edit import EditedModel
from lightning_edit.__main__ import main
from lightning_edit.editors import MEMIT
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.report.attribution_section import read_attributions
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tiny, build_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attribute") / "run"
    options = "--model MEMIT --data AtlasDataModule --data.limit 4 --protocol batch"
    trainer = "--trainer.callbacks AttributionCallback --trainer.enable_progress_bar false"
    words = [*options.split(), *trainer.split(), "--model.steps", "8"]
    assert main(["edit", *words, "--run", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_run_says_why_its_facts_moved(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_callback = read_attributions(run)
    out = run.parent / "why.csv"
    assert main(["attribute", str(run), "--facts", "2", "--top", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "most by edit" in said
    assert "in block" in said
    found = read_attributions(run)
    assert len(found) == 2
    # The callback and the verb ask the same model for the same facts.
    for one in found:
        (same,) = [other for other in by_callback if other.fact.prompt == one.fact.prompt]
        assert same.change == pytest.approx(one.change, abs=1e-4)
        assert same.effects[0].ids == one.effects[0].ids
        assert same.first_order == pytest.approx(one.first_order, abs=1e-4)
    rows = list(csv.DictReader(StringIO(out.read_text(encoding="utf-8"))))
    assert {row["by"] for row in rows} == {"columns", "measured"}
    assert len(rows) == 2 * (2 + 1)  # one edit in two layers, and its commit left out
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    metrics = results["points"][-1]["metrics"]
    assert metrics["attribution/moved"] == len(by_callback)
    assert 0 <= metrics["attribution/own_edit"] <= 1


@pytest.mark.slow
def test_the_page_has_a_section(run: Path) -> None:
    pytest.importorskip("bokeh")
    page = run.parent / "page.html"
    assert main(["report", str(run), "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Why facts moved" in text
    assert read_attributions(run)[0].fact.answer in text


@pytest.mark.slow
def test_a_fact_of_the_users_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "attribution.json").read_bytes()
    out = run.parent / "why.json"
    words = ["--fact", "The capital of Norway is", "Oslo", "--by", "undo", "--out", str(out)]
    assert main(["attribute", str(run), *words]) == 0
    assert "left out" in capsys.readouterr().out
    (row,) = json.loads(out.read_text(encoding="utf-8"))["facts"]
    assert row["fact"]["answer"] == "Oslo"
    assert row["measured"][0]["log_prob"] == pytest.approx(row["change"], abs=1e-4)
    assert (run / "attribution.json").read_bytes() == before


@pytest.mark.slow
def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = copytree(run, tmp_path / "undone")
    assert main(["undo", str(gone), "--all"]) == 0
    assert main(["attribute", str(gone)]) == 2
    assert "no edit is in force" in capsys.readouterr().err
    bare = copytree(run, tmp_path / "bare")
    (bare / "cases.jsonl").unlink()
    assert main(["attribute", str(bare)]) == 2
    assert "name facts with --fact PROMPT ANSWER" in capsys.readouterr().err
    (file,) = bare.glob("ledger/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert main(["attribute", str(bare), "--fact", "The capital of Norway is", "Oslo"]) == 2
    assert "SHA-256 differs" in capsys.readouterr().err


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """A run of a tiny model in one commit, without options on disk: its model must be named."""
    model, tokenizer = build_tiny("gpt2").requires_grad_(False), build_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    facts = [
        EditRequest("france", "The capital of France is", "Rome", "France"),
        EditRequest("italy", "The capital of Italy is", "Paris", "Italy"),
    ]
    editor = MEMIT(moment_weight=1.0, steps=3, statistics="identity", context_templates=["{}"])
    delta = editor.bind(model, tokenizer).edit(encode_batch(tokenizer, facts))
    for name, one in (("run", delta), ("old", replace(delta, columns={}, history={}))):
        with_edit = EditedModel.of(model, tokenizer, tmp_path / name).commit(one, facts)
        with_edit.undo().redo()
        for touched in with_edit.ledger.touched.values():
            touched.hide()  # the next one takes the model as it was
    return [str(tmp_path / "run"), "--model", str(tmp_path / "model")]


FACT = ["--fact", "The capital of Italy is", "Rome"]


def test_columns_of_requests(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attribute", *small, *FACT, "--by", "columns"]) == 0
    said = capsys.readouterr().out
    assert "france" in said
    assert "italy" in said
    assert "columns" in said


def test_a_run_of_a_version_without_columns(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    old = [small[0].removesuffix("run") + "old", *small[1:]]
    assert main(["attribute", *old, *FACT, "--by", "columns"]) == 2
    assert "did not record them" in capsys.readouterr().err
    assert main(["attribute", *old, *FACT]) == 0
    assert "attributed as a whole" in " ".join(capsys.readouterr().out.split())


def test_another_model_is_refused(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_tiny("gpt2", seed=1).save_pretrained(tmp_path / "model")
    assert main(["attribute", *small, *FACT]) == 2
    assert "has other weights" in capsys.readouterr().err
    assert main(["attribute", str(tmp_path), *FACT]) == 2
    assert "lightning-edit attribute: " in capsys.readouterr().err


def test_options_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["--out", "why.txt"], ".json or .csv"),
        (["--top", "0"], "a whole number of 1 or more"),
        (["--measure", "-1"], "a whole number of 0 or more"),
    ):
        assert main(["attribute", "run", *words]) == 2
        assert told in capsys.readouterr().err
