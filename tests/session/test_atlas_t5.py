"""The packaged model of two stacks through the whole way: edit, evaluate, resume, open, report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit import FTM, EditedModel, LoRAEdit, load_language_model
from lightning_edit.__main__ import main
from lightning_edit.editors import FT
from lightning_edit.editors.base import Editor
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.metrics import summarise
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest, Probe

# PEFT asks for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

FACT = EditRequest(
    "france", "The capital of France is", "Oslo", "France",
    probes=(
        Probe.of("rephrase", "What is the capital of France?", "Oslo"),
        Probe.of("neighborhood", "The capital of Poland is", "Warsaw"),
    ),
)  # fmt: skip
EDITORS: list[tuple[type[Editor], dict[str, Any]]] = [
    (FT, {"objective": "target_new", "lr": 2e-3}),
    (FTM, {"lr": 2e-3}),
    (LoRAEdit, {"lr": 2e-3, "steps": 25}),
]
RUN = [
    "edit", "--model", "FTM", "--model.lr", "2e-3", "--lm", "atlas-t5",
    "--data", "AtlasDataModule", "--trainer.enable_progress_bar", "false",
]  # fmt: skip


@pytest.mark.parametrize(
    ("editor_class", "arguments"), EDITORS, ids=[editor.__name__ for editor, _ in EDITORS]
)
def test_a_fact_is_edited_and_taken_back(
    editor_class: type[Editor], arguments: dict[str, Any]
) -> None:
    model, tokenizer = load_language_model("atlas-t5")
    before, scorer = weights_hash(model), Scorer(model, tokenizer)
    pristine = summarise(evaluate(scorer, [FACT]))
    assert pristine["reliability/em@tf"] == 0.0
    edited = editor_class(**arguments).edit_model(model, tokenizer, FACT)
    assert edited.generate(FACT.prompt).strip().startswith("Oslo")
    after = summarise(evaluate(scorer, [FACT]))
    assert after["reliability/em@tf"] == after["reliability/em@gen"] == 1.0
    edited.undo()
    assert edited.generate(FACT.prompt).strip() == "Paris."
    assert weights_hash(model) == before
    assert summarise(evaluate(scorer, [FACT])) == pristine


@pytest.mark.slow
def test_a_run_is_cut_resumed_opened_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = [*RUN, "--data.limit", "3", "--modes", "[tf,gen]"]
    assert main([*run, "--run", "whole"]) == 0
    results = json.loads(Path("whole/results.json").read_text(encoding="utf-8"))
    assert results["points"][-1]["metrics"]["reliability/em@gen"] >= 0.6
    own, calls = FTM.edit, []

    def cut(editor: FTM, batch: Any) -> Any:
        calls.append(batch.ids)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(editor, batch)

    monkeypatch.setattr(FTM, "edit", cut)
    assert main([*run, "--run", "cut"]) != 0
    monkeypatch.setattr(FTM, "edit", own)
    assert main(["resume", "cut"]) == 0
    for name in ("cases.jsonl", "ledger/journal.jsonl"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()
    opened = EditedModel.open("cut")
    assert opened.model.name_or_path == "atlas-t5"
    assert len(opened.ids) == 3
    capsys.readouterr()
    assert main(["report", "cut"]) == 0
    assert "atlas-t5" in capsys.readouterr().out
    # The card's own code loads the base model by the name that only this package knows.
    assert main(["export", "cut", "--format", "peft", "--out", "adapter"]) == 0
    card = Path("adapter/README.md").read_text(encoding="utf-8")
    code = card.split("```python")[1].split("```")[0]
    assert 'load_language_model("atlas-t5")' in code
    loaded: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), loaded)
    inputs = {"input_ids": torch.tensor([[5, 6, 1]]), "decoder_input_ids": torch.tensor([[0, 7]])}
    expected = opened.model(**inputs).logits
    torch.testing.assert_close(loaded["model"](**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    opened.undo()
    assert weights_hash(opened.model) == weights_hash(load_language_model("atlas-t5")[0])


@pytest.mark.slow
def test_a_run_on_the_command_line_is_opened_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "--data.limit", "1", "--modes", "[tf]", "--run", "run"]) == 0
    results = json.loads(Path("run/results.json").read_text(encoding="utf-8"))
    assert results["points"][-1]["metrics"]["reliability/em@tf"] == 1.0
    opened, pristine = EditedModel.open("run"), load_language_model("atlas-t5")[0]
    assert opened.model.name_or_path == "atlas-t5"
    assert weights_hash(opened.model) != weights_hash(pristine)
    opened.undo()
    assert weights_hash(opened.model) == weights_hash(pristine)


def test_doctor_names_both_stacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "atlas-t5"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "T5ForConditionalGeneration",
        "encoder-decoder",
        "3 in the decoder",
        "encoder MLP",
    ):
        assert words in shown
