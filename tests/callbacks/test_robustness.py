"""Edits of a chat model asked again under other system messages."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.callbacks import RobustnessCallback
from lightning_edit.callbacks.context import EvalContext
from lightning_edit.editors import FTM
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.session.trainer import EditTrainer
from tests.toy import ToyData, toy_model, toy_requests, toy_tokenizer

COUNT = 4
#: Turns are words after each other.
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


def chat_tokenizer() -> Any:
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def wide_model() -> Any:
    """Weights wide enough for an edit of one layer to change what is said."""
    model = toy_model()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return model


def generate(model: Any, tokenizer: Any, system: str | None, question: str) -> str:
    """The answer of transformers alone."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": question})
    read = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    written = model.generate(input_ids=read, do_sample=False, max_new_tokens=16)[0]
    return str(tokenizer.decode(written[read.shape[1] :], skip_special_tokens=True))


@pytest.mark.slow
def test_the_share_that_holds_is_that_of_the_models_own_answers(tmp_path: Path) -> None:
    model, tokenizer = wide_model(), chat_tokenizer()
    systems = (None, "the land", "the city", "of land")
    editor = FTM(layers=[0], lr=2e-2, steps=80)
    editor.bind(model, PromptEncoder(tokenizer, PromptFormat(True, "the land")))
    trainer = EditTrainer(
        logger=False, enable_progress_bar=False, callbacks=[RobustnessCallback(systems)]
    )
    run = str(tmp_path / "run")
    results = trainer.edit(editor, ToyData(COUNT), protocol="batch", run=run)
    metrics = results["points"][-1]["metrics"]
    assert metrics["reliability/answer@gen"] == 1.0  # under its own system message
    facts, expected, rows = toy_requests(COUNT), {}, []
    for number, system in enumerate(systems):
        if system == "the land":
            continue  # the run's own
        texts = [generate(model, tokenizer, system, fact.prompt) for fact in facts]
        held = [text.split()[0] == fact.target for text, fact in zip(texts, facts, strict=True)]
        expected[f"robustness.system{number}/answer@gen"] = sum(held) / COUNT
        rows += held
    expected |= {"robustness/answer@gen": sum(rows) / (3 * COUNT), "robustness/n": float(COUNT)}
    assert {k: v for k, v in metrics.items() if k.startswith("robustness")} == expected
    # A random model of two blocks forgets under some message: the measure can tell.
    assert 0 < expected["robustness/answer@gen"] < 1
    # The pristine model is asked the same, and knows none of it.
    assert results["points"][-1]["before"]["robustness/answer@gen"] == 0.0


def test_what_it_needs_is_said() -> None:
    model, tokenizer = toy_model(), chat_tokenizer()
    with pytest.raises(ConfigError, match="plain text; add --lm_chat true"):
        RobustnessCallback(requests=toy_requests(1)).measure(EvalContext(0, model, tokenizer))
    with pytest.raises(ConfigError, match="no system message; give some"):
        RobustnessCallback(systems=())
