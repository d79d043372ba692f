"""`lightning-edit detect`: facts that the model knows and facts that it does not, told apart."""

import json
from pathlib import Path

import pytest
import torch

from lightning_edit import load_language_model
from lightning_edit.__main__ import main


def summary(path: Path, *options: str) -> dict[str, float]:
    assert main(["detect", "--limit", "40", "--out", str(path), *options]) == 0
    found: dict[str, float] = json.loads(path.read_text())["summary"]
    return found


@pytest.mark.slow
def test_the_atlas_knows_its_facts_and_not_the_edits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true = summary(tmp_path / "true.json", "--object", "old_target")
    text = capsys.readouterr().out
    assert f"{true['unknown']} of 40 facts are not known" in " ".join(text.split())
    unknown = tmp_path / "unknown.jsonl"
    edited = summary(tmp_path / "edited.json", "--unknown", str(unknown))
    assert true["unknown"] <= 3
    assert edited["unknown"] > 10
    assert true["median_score"] > 2 * edited["median_score"]
    rows = json.loads((tmp_path / "edited.json").read_text())["facts"]
    missing = {row["id"] for row in rows if not row["known"]}
    listed = [json.loads(line) for line in unknown.read_text().splitlines()]
    assert {row["id"] for row in listed} == missing
    assert all(len(row["wrong"]) == 3 for row in rows)
    # What it writes is data for `edit`.
    assert main(["data", "check", str(unknown)]) == 0


def test_a_broken_model_has_no_verdict_on_a_fact(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its weights are finite and its outputs are not, so that all scores are at the cap."""
    model, tokenizer = load_language_model("atlas")
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    monkeypatch.setattr("lightning_edit.cli.detect.load_model", lambda _: (model, tokenizer))
    found = summary(tmp_path / "broken.json", "--unknown", str(tmp_path / "unknown.jsonl"))
    assert (found["facts"], found["not_finite"], found["unknown"]) == (40, 40, 0)
    assert found["median_score"] is found["unknown_share"] is None
    assert (tmp_path / "unknown.jsonl").read_text() == ""
    assert "40 facts have no verdict" in capsys.readouterr().out
    assert "not finite at 40 of 40 facts" in caplog.text


def test_arguments_and_data_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "--wrong", "0"]) == 2
    assert "--wrong" in capsys.readouterr().err
    assert main(["detect", "--limit", "0"]) == 2
    assert "--limit of 1 or more" in capsys.readouterr().err
    file = tmp_path / "facts.jsonl"
    file.write_text(
        '{"prompt": "The capital of France is", "target": "Lyon", "subject": "France"}\n'
    )
    assert main(["detect", "--data", str(file)]) == 2
    assert "several relations" in capsys.readouterr().err
