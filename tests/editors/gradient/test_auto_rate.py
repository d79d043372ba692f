"""`lr="auto"`: the first step takes what it is to take from the loss; the box is in its steps."""

from typing import Any

import pytest
import torch

from lightning_edit.editors import FT, FTL, FTM, LocFTBF
from lightning_edit.editors.gradient import base
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import SolveError
from lightning_edit.types import EditRequest
from tests.models.tiny import TINY, build_tokenizer

FACTS = [
    EditRequest("0", "The capital of France is", "Rome", "France"),
    EditRequest("1", "Lyon lies in", "Italy", "Lyon"),
]


def bound(editor: Any, family: str = "llama") -> tuple[Any, Any]:
    tokenizer = build_tokenizer(eos=True)
    editor.bind(TINY[family]().requires_grad_(False), tokenizer)
    return editor, encode_batch(tokenizer, FACTS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("method", [FT, FTM])
def test_a_small_step_takes_its_share_of_the_loss(
    method: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "STEP_REACH", 1e-3)
    editor, batch = bound(method(steps=2), family)
    first, second = editor.edit(batch).info["loss"]
    assert (first - second) / first == pytest.approx(1e-3, rel=0.15)


def test_the_box_is_a_number_of_steps_wide() -> None:
    editor, batch = bound(FTL(layers=[1]))
    delta = editor.edit(batch)
    rate = delta.info["auto"]["lr"]
    (update,) = delta.weights.values()
    assert float(update.dense().abs().max()) == pytest.approx(base.STEPS_IN_BOX * rate, rel=1e-4)
    assert delta.info["auto"]["norm_constraint"] == pytest.approx(base.STEPS_IN_BOX * rate)


def test_a_number_is_taken_as_it_is() -> None:
    editor, batch = bound(FTL(layers=[1], lr=1e-3, norm_constraint=2e-3))
    delta = editor.edit(batch)
    assert editor.chosen == {}
    assert "auto" not in delta.info
    (update,) = delta.weights.values()
    assert float(update.dense().abs().max()) == pytest.approx(2e-3, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [FTM, LocFTBF])
def test_facts_are_written_whatever_the_scale_of_the_weights(method: Any, family: str) -> None:
    """A model with trained weights a hundred times as large, behind a norm, needs such steps."""
    rates = []
    for scale in (1.0, 100.0):
        editor, batch = bound(method(layers=[1], steps=60), family)
        for weight in editor.trained_weights():
            weight.raw().mul_(scale)
        delta = editor.edit(batch)
        assert delta.info["loss"][-1] < 0.1 * delta.info["loss"][0]
        rates.append(delta.info["auto"]["lr"])
    assert rates[1] > 3 * rates[0]


def test_rates_are_refused_below_zero() -> None:
    with pytest.raises(ValueError, match="lr auto or > 0"):
        FTM(lr=0.0)


def test_the_rate_is_the_same_in_a_resumed_process() -> None:
    torch.manual_seed(0)
    first = bound(FTM(layers=[1], steps=1))
    second = bound(FTM(layers=[1], steps=1))
    values = [editor.edit(batch).info["auto"]["lr"] for editor, batch in (first, second)]
    assert values[0] == values[1]


def test_a_loss_that_is_not_finite_is_refused_before_the_first_step() -> None:
    editor, batch = bound(FTM(layers=[0]))
    with torch.no_grad():
        editor.language_model.get_parameter("model.norm.weight").fill_(float("nan"))
    with pytest.raises(SolveError, match="not finite before the first step"):
        editor.edit(batch)
