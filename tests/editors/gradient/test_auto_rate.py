"""`lr="auto"`: each step takes what it is to take from the loss, and changes other text least."""

from typing import Any

import pytest
import torch

from lightning_edit.editors import FT, FTL, FTM, LocFTBF
from lightning_edit.editors.gradient import base
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import SolveError
from lightning_edit.functional.losses import bag_entropy, bag_nll
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
    excess = first - float(editor.least(batch.encoded).mean())
    assert (first - second) / excess == pytest.approx(1e-3, rel=0.05)


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
    assert editor.chosen == {"steps": 25, "threshold": 1e-2}  # the published ones
    (update,) = delta.weights.values()
    assert float(update.dense().abs().max()) == pytest.approx(2e-3, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [FTM, LocFTBF])
def test_facts_are_written_whatever_the_scale_of_the_weights(method: Any, family: str) -> None:
    """A model with trained weights a hundred times as large, behind a norm, needs such steps."""
    rates = []
    for scale in (1.0, 100.0):
        editor, batch = bound(method(layers=[1], steps=80), family)
        for weight in editor.trained_weights():
            weight.raw().mul_(scale)
        delta = editor.edit(batch)
        items = editor.with_ends(batch.encoded) if method is LocFTBF else batch.encoded
        with delta.applied(editor.language_model), torch.no_grad():
            assert float(editor.loss(items, {}).margin.min()) > base.MARGIN
        rates.append(delta.info["auto"]["lr"])
    assert rates[1] > 3 * rates[0]


@pytest.mark.parametrize("method", [FTM, LocFTBF])
def test_training_ends_when_every_request_is_learnt(method: Any) -> None:
    editor, batch = bound(method(layers=[1, 2]))
    batch = batch.split()[0]
    delta = editor.edit(batch)
    assert 1 < delta.info["steps"] < base.MOST_STEPS
    items = editor.with_ends(batch.encoded) if method is LocFTBF else batch.encoded
    with delta.applied(editor.language_model), torch.no_grad():
        margins = editor.loss(items, {}).margin
    assert float(margins.min()) > base.MARGIN


def test_the_least_loss_of_a_bag_is_the_entropy_of_its_tokens() -> None:
    editor, batch = bound(FT())
    tokens = [len(set(one.target_ids)) for one in batch.encoded]
    assert max(tokens) > 1
    assert editor.least(batch.encoded).exp().tolist() == pytest.approx(tokens)
    logits = torch.full((1, 9), -30.0)
    logits[0, [3, 5, 7]] = 0.0
    assert float(bag_nll(logits, [(3, 5, 7)])) == pytest.approx(bag_entropy((3, 5, 7)))
    assert bound(FTM())[0].least(batch.encoded).tolist() == [0.0, 0.0]


def test_what_is_learnt_takes_no_part_in_a_step() -> None:
    editor, batch = bound(FTM(layers=[1], steps=150))
    (first, second) = batch.split()
    learnt = editor.edit(first)
    one = FTM(layers=[1], steps=1, lr="auto").bind(editor.language_model, editor.tokenizer)
    with learnt.applied(editor.language_model):
        again, both, alone = one.edit(first), one.edit(batch), one.edit(second)
    changes = [next(iter(edit.weights.values())).dense() for edit in (again, both, alone)]
    assert float(changes[0].abs().max()) == 0
    assert float(changes[2].abs().max()) > 0
    assert torch.allclose(changes[1], changes[2], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_equivalent_model_of_another_scale_gets_the_equivalent_edit(family: str) -> None:
    """Keys eight times as large behind weights an eighth as large: the same function."""
    updates = []
    for scale in (1.0, 8.0):
        editor, batch = bound(FTM(layers=[1]), family)
        down = editor.trained_weights()[0].raw()
        if family == "llama":
            up = editor.language_model.get_parameter("model.layers.1.mlp.up_proj.weight")
            with torch.no_grad():
                up.mul_(scale)
                down.div_(scale)
            editor.bind(editor.language_model, editor.tokenizer)
            delta = editor.edit(batch)
            updates.append(next(iter(delta.weights.values())).dense() * scale)
        else:  # an activation that is no line: the whole stream is scaled, behind its norms
            model = editor.language_model
            with torch.no_grad():
                for name, value in model.named_parameters():
                    if name.endswith(("wte.weight", "wpe.weight")) or ".c_proj." in name:
                        value.mul_(scale)
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight / scale)
            editor.bind(model, editor.tokenizer)
            delta = editor.edit(batch)
            updates.append(next(iter(delta.weights.values())).dense() / scale)
    assert float(updates[0].abs().max()) > 0
    assert torch.allclose(updates[0], updates[1], rtol=2e-2, atol=float(updates[0].std()) / 20)


def test_a_rate_given_as_a_number_keeps_the_authors_steps_and_threshold() -> None:
    given, rule = FTM(lr=5e-4), FTM()
    assert (given.most_steps, given.end_loss) == (25, 1e-2)
    assert (rule.most_steps, rule.end_loss) == (base.MOST_STEPS, None)
    assert (FTM(steps=7).most_steps, FTM(threshold=0.5).end_loss) == (7, 0.5)


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


@pytest.mark.parametrize("margin", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_not_called_learnt(
    monkeypatch: pytest.MonkeyPatch, margin: float
) -> None:
    """The margin of an infinite logit is infinite, and its loss is no number."""
    editor, batch = bound(FTM(layers=[1]))
    losses, step, made = editor.loss, editor.step, []

    def lost_after_a_step(encoded: Any, values: Any) -> base.RowLosses:
        found = losses(encoded, values)
        if not made:
            return found
        return base.RowLosses(found.nll * torch.nan, torch.full_like(found.nll.detach(), margin))

    def counted(*arguments: Any) -> Any:
        made.append(step(*arguments))
        return made[-1]

    monkeypatch.setattr(editor, "loss", lost_after_a_step)
    monkeypatch.setattr(editor, "step", counted)
    delta = editor.edit(batch)
    # A ledger refuses to write this; training that ended early would look like a small edit.
    assert any(not torch.isfinite(one.dense()).all() for one in delta.weights.values())
