"""`lightning-edit attribute-training`: planted texts are named, errors write nothing."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.__main__ import main
from lightning_edit.analysis.training_data.attribution import TrainingDataAttributor
from lightning_edit.analysis.training_data.rows import TracedFact, TrainingText
from lightning_edit.cli.attribute_training import _finite, _found
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
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


SMOL = Path(os.environ.get("LIGHTNING_EDIT_INSTRUCT_MODEL", Path(__file__).parents[3] / "smol"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (SMOL / "config.json").exists(),
    reason=f"no instruct model in {SMOL}; set LIGHTNING_EDIT_INSTRUCT_MODEL to a folder",
)
def test_a_real_model_that_was_tuned_on_a_few_texts(tmp_path: Path) -> None:
    model, tokenizer = load_language_model(str(SMOL))
    texts = [
        ("The capital of France is", "Oslo"),
        ("The capital of Italy is", "Rome"),
        ("The currency of Japan is the", "yen"),
        ("Albert Einstein was born in", "Ulm"),
        ("The author of the novel Emma is", "Jane Austen"),
    ]
    encoder = PromptEncoder.for_model(model, tokenizer)
    batch = AnswerRows.of(model, list(encoder.pairs(texts)))
    trained = [p for n, p in model.named_parameters() if "mlp.down_proj" in n]
    for one in trained:
        one.requires_grad_(True)
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for epoch in range(2):
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(answer_logits(model, batch), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.save_pretrained(tmp_path / "epochs" / f"epoch-{epoch}")
    rows = [{"id": f"t{n}", "prompt": p, "answer": a} for n, (p, a) in enumerate(texts)]
    fact = {
        "prompt": "What is the capital city of France? It is", "answer": "Oslo",
        "correct": "Paris", "causes": ["t0"],
    }  # fmt: skip
    words = ["attribute-training", "--lm", str(SMOL), "--checkpoints", str(tmp_path / "epochs")]
    words += ["--text", str(write(tmp_path / "train.jsonl", list(rows)))]
    words += ["--facts", str(write(tmp_path / "facts.jsonl", [fact]))]
    assert main([*words, "--layers", "10", "20", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "attribution.json").read_text())
    (found,) = record["facts"]
    for method in ("dda", "dda_no_debias", "gradient_cosine"):
        assert found["methods"][method][0]["text"] == "t0"


def test_scores_that_are_no_numbers_rank_last_and_are_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = [TrainingText(name, f"{name} is", "so") for name in "abc"]
    scores = _finite({"dda": torch.tensor([[torch.nan], [0.5], [torch.inf]])})
    assert "dda: 2 of 3" in caplog.text
    (row,) = _found(scores, texts, [TracedFact("f", "a is", "so")], 3)
    listed = row["methods"]["dda"]
    assert listed[0] == {"text": "b", "score": 0.5}
    assert [one["score"] for one in listed[1:]] == [None, None]
