"""SERAC on real models: the recipe of the atlas, an instruct model with another vocabulary."""

import json
import os
from pathlib import Path

import pytest

from lightning_edit.cli.lightning import main
from lightning_edit.editors.routing.memory import ScopeMemory, stored_delta
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Statement
from lightning_edit.models.loading import load_language_model, locate
from tests.conftest import ROOT
from tests.editors.routing.routing import PROMPTS, REQUESTS, tuned

SMOL = Path(os.environ.get("LIGHTNING_EDIT_INSTRUCT_MODEL", Path(__file__).parents[4] / "smol"))
CONFIG = str(ROOT / "configs/train/serac_atlas.yaml")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what Lightning's command line warns of is not tested here
def test_recipe_trains_goes_on_and_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    small = ["--data.batch_size", "8", "--trainer.check_val_every_n_epoch", "1"]
    fit = ["fit", "--config", CONFIG, *short, *small]
    assert main([*fit, "--trainer.max_epochs", "1"]) == 0
    assert main([*fit, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    best = tmp_path / "runs/serac-atlas/checkpoints/best.ckpt"
    edit = ["edit", "--config", str(ROOT / "configs/method/SERAC.yaml"), "--run", "run"]
    edit += ["--model.checkpoint", str(best), "--data", "AtlasDataModule", "--data.limit", "2"]
    assert main([*edit, "--protocol", "sequential"]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["status"] == "complete"
    assert "reliability/answer@gen" in results["points"][-1]["metrics"]


@pytest.mark.slow
@pytest.mark.skipif(not SMOL.is_dir(), reason=f"no instruct model in {SMOL}")
def test_an_instruct_model_with_a_counterfactual_model_of_another_vocabulary() -> None:
    model, tokenizer = load_language_model(str(SMOL))
    editor = tuned(model, tokenizer, classifier="scratch", counterfactual=locate("atlas"))
    assert editor.scope is not None
    assert not editor.one_vocabulary
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    responder = editor.responder(handle.ledger.in_force)
    memory = ScopeMemory(editor.scope)
    memory.install([stored_delta(REQUESTS)])
    inside = [choice.inside for choice in memory.choose(PROMPTS).values()]
    assert set(inside) == {True, False}
    base = ModelResponder(model, tokenizer)
    questions = [Question(prompt, 4) for prompt in PROMPTS]
    texts = responder.generate_until(questions)
    for question, text, near in zip(questions, texts, inside, strict=True):
        if not near:
            assert text == base.generate_until([question])[0]
    statements = [Statement(prompt, "Lyon") for prompt in PROMPTS]
    found, plain = responder.loglikelihood(statements), base.loglikelihood(statements)
    for one, other, near in zip(found, plain, inside, strict=True):
        assert one.tokens == other.tokens
        assert len(one.best) == len(one.tokens)
        assert near or one.best == other.best
