"""Runs of editors that add neurons: every protocol, and a failed run that is gone on with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import CaliNet, TPatcher
from lightning_edit.editors.base import Editor
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Statement
from lightning_edit.session.trainer import EditTrainer
from tests.toy import ToyData, toy_model, toy_requests, toy_tokenizer

MEMORY = [f"what is the capital of land{i} ? city{i % 40} ." for i in range(100, 140)]


class PlantedError(Exception):
    """A failure in the middle of a run."""


def make(name: str) -> Editor:
    if name == "CaliNet":
        return CaliNet(width=8, steps=20, lr=1e-2)
    return TPatcher(memory=MEMORY, steps=30, memory_weight=1.0)


def edit(name: str, run: Path, fail_at: str | None = None, **options: Any) -> tuple[Any, Editor]:
    editor = make(name).bind(toy_model(), toy_tokenizer())
    own = editor.edit

    def failing(batch: Any) -> Any:
        if fail_at in batch.ids:
            raise PlantedError
        return own(batch)

    editor.edit = failing  # type: ignore[method-assign]
    trainer = EditTrainer(logger=False, enable_progress_bar=False)
    trainer.edit(editor, ToyData(3), run=str(run), modes=("tf",), **options)
    results = json.loads((run / "results.json").read_text())
    return results["points"][-1]["metrics"], editor


@pytest.mark.parametrize("name", [pytest.param("TPatcher", marks=pytest.mark.slow), "CaliNet"])
def test_facts_are_written_and_a_failed_run_goes_on_with_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    options = {"protocol": "sequential", "checkpoint_every": 1}
    whole, editor = edit(name, tmp_path / "whole", **options)
    with pytest.raises(PlantedError):
        edit(name, tmp_path / "cut", fail_at="fact-2", **options)
    resumed, other = edit(name, tmp_path / "cut", ckpt_path="last", **options)
    assert resumed == whole
    for one, two in zip(editor.edits_in_force, other.edits_in_force, strict=True):
        assert all(torch.equal(one.state[key], two.state[key]) for key in one.state)
    ids = torch.tensor([[1, 2, 3, 12, 5]])
    assert torch.equal(editor.language_model(ids).logits, other.language_model(ids).logits)
    assert len(editor.edits_in_force) == len(toy_requests(3))


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["single", "batch"])
@pytest.mark.parametrize("name", ["TPatcher", "CaliNet"])
def test_other_protocols(name: str, protocol: str, tmp_path: Path) -> None:
    scores, editor = edit(name, tmp_path, protocol=protocol)
    if name == "CaliNet":  # thirty steps are too few for a neuron that begins at random
        statements = [Statement(one.prompt, one.target) for one in toy_requests(3)]
        pristine = ModelResponder(toy_model(), toy_tokenizer()).loglikelihood(statements)
        assert scores["reliability/nll@tf"] < sum(one.total for one in pristine) / 3 - 0.05
    else:
        assert all(one.info["neurons"] == [1] for one in editor.edits_in_force)
    assert (
        len(editor.edits_in_force)
        == {"single": 0, "batch": 3 if name == "TPatcher" else 1}[protocol]
    )
