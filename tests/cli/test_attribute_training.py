"""`lightning-edit attribute-training`: planted texts are named, errors write nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.__main__ import main
from lightning_edit.analysis.training_data.attribution import TrainingDataAttributor
from tests.analysis.training_data.tuned import Tuned, fine_tune, write


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return fine_tune(tmp_path_factory.mktemp("tuned"))


def arguments(tuned: Tuned, out: Path, **changes: Any) -> list[str]:
    given: dict[str, Any] = {
        "lm": tuned.base, "checkpoints": tuned.checkpoints, "text": tuned.text,
        "facts": tuned.facts, "out": out, **changes,
    }  # fmt: skip
    pairs = [(name, value) for name, value in given.items() if value is not None]
    return ["attribute-training", *(str(part) for n, v in pairs for part in (f"--{n}", v))]


def test_planted_texts_are_named_and_scored(
    tuned: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tuned, tmp_path, block=6)) == 0
    said = capsys.readouterr().out
    assert "wrong-0" in said
    assert "recall@5" in said
    record = json.loads((tmp_path / "attribution.json").read_text())
    assert record["schema"] == "lightning-edit-training-attribution/1"
    for number, fact in enumerate(record["facts"]):
        assert fact["methods"]["dda"][0]["text"] == f"wrong-{number}"
        assert len(fact["methods"]["hidden_cosine"]) == 10
    quality = record["quality"]["dda"]
    assert quality["auc"]["mean"] == 1.0
    assert quality["auc"]["low"] < 1.0 == quality["auc"]["high"]
    # Facts whose causes nobody knows are listed without scores; the index is read.
    rows: list[dict[str, object]] = [{"prompt": "The capital of Spain is", "answer": "Rome"}]
    unknown = write(tmp_path / "unknown.jsonl", rows)
    assert main(arguments(tuned, tmp_path, facts=unknown, block=6)) == 0
    record = json.loads((tmp_path / "attribution.json").read_text())
    assert record["quality"] is None
    assert record["facts"][0]["methods"]["dda"][0]["text"] == "wrong-0"


def test_an_interrupted_run_says_how_to_go_on(
    tuned: Tuned,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingDataAttributor, "products", stop)
    assert main(arguments(tuned, tmp_path)) == 1
    assert "go on with\n  lightning-edit attribute-training --lm" in capsys.readouterr().err
    assert not (tmp_path / "attribution.json").exists()


def test_errors_are_one_sentence_and_write_nothing(
    tuned: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write(tmp_path / "empty.jsonl", [{"prompt": "The capital of Spain is", "answer": ""}])
    out = tmp_path / "out"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"checkpoints": None}, "expected --checkpoints, one an epoch of the fine-tuning"),
        ({"checkpoints": tmp_path / "none"}, "expected a checkpoint, got nothing there"),
        ({"facts": empty}, 'line 1: expected a text that is not empty as "answer"'),
        ({"text": tmp_path / "none.jsonl"}, "expected a JSONL file, got none"),
        ({"subset": "lora"}, "the parameter subset 'lora' has no linear layer"),
        ({"layers": 9}, "expected layers from 0 to 2, got 9"),
        ({"beta": -1}, "expected --beta of 0 or more, got -1"),
        ({"method": "magic"}, "expected --method of dda,"),
        ({"learning_rates": 0.1}, "expected 4 learning rates, one a checkpoint, got 1"),
        ({"lm": "atlas"}, "lacks weights of|expected model.embed_tokens.weight of shape"),
    ]
    for changes, said in cases:
        assert main(arguments(tuned, out, **changes)) == 2, changes
        message = capsys.readouterr().err
        assert message.startswith("lightning-edit attribute-training: "), changes
        assert any(one in message for one in said.split("|")), message
        assert not out.exists(), changes
