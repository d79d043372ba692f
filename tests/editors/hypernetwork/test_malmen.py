"""MALMEN: its decoupled gradient is autograd's, and what an edit is."""

import logging
from typing import Any

import pytest
import torch

from lightning_edit.editors.hypernetwork.edit_tokens import read_tokens
from lightning_edit.editors.hypernetwork.malmen import MALMEN
from lightning_edit.edits.delta import Dense, LowRank
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weights_hash
from tests.editors.hypernetwork.solving import (
    answer_tokens,
    gradients_of,
    kl_sum,
    language_model,
    nll_sum,
    parameters_with,
    sample,
    shaken,
    solved_by_autograd,
)
from tests.toy import toy_requests


def malmen(kind: str, **options: Any) -> MALMEN:
    settings: dict[str, Any] = {"rank": 3, "step_size": 0.05, "own_probes": 1, "other_facts": 1}
    editor = MALMEN(**settings | options)
    editor.bind(*language_model(kind))
    editor.trained_batches += 1
    shaken(editor)
    return editor


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("kind", "projection"), [("gpt2", "down"), ("llama", "both"), ("t5", "both"), ("bart", "down")]
)
def test_decoupled_gradient_is_that_of_one_graph(
    kind: str, projection: Any, together: bool
) -> None:
    """Read, solve, run, go back: the same as autograd through all of it, pass sizes aside."""
    options: dict[str, Any] = {"together": together, "projection": projection, "c_loc": 3.0}
    editor = malmen(kind, mini_batch=4, tokens_per_pass=3, layers=[0, 1], **options)
    batch = sample(editor, 7)
    terms, found = editor.step_gradients(batch)
    tokens = editor.read(batch.inner)
    updates = solved_by_autograd(editor, tokens, None if together else 7)
    nll = torch.zeros((), dtype=torch.float64)
    kl = torch.zeros((), dtype=torch.float64)
    outer, locality = editor.learnt(batch.outer), editor.learnt(batch.locality)
    for number, update in enumerate(updates):
        values = parameters_with(editor, update)
        own = [row for edit, row in outer if together or edit == number]
        local = [row for edit, row in locality if together or edit == number]
        nll = nll + nll_sum(editor, own, values)
        kl = kl + kl_sum(editor, local, values, None)
    nll, kl = nll / answer_tokens(outer), kl / answer_tokens(locality)
    loss = editor.c_edit * nll + editor.c_loc * kl
    assert float(kl.detach()) > 1e-4
    assert float(terms["edit_nll"]) == pytest.approx(float(nll.detach()), rel=1e-6)
    assert float(terms["locality_kl"]) == pytest.approx(float(kl.detach()), rel=1e-6)
    for (name, _), got, wanted in zip(
        editor.named_parameters(), found, gradients_of(editor, loss), strict=True
    ):
        # transformers' RMSNorm computes in single precision, whatever the model's dtype.
        allowed = 1e-4 if kind in ("llama", "t5") else 1e-9
        assert float((got - wanted).norm()) <= allowed * float(wanted.norm()), name
        assert bool(wanted.any()), name


def test_pass_sizes_change_nothing() -> None:
    """A ragged last mini-batch is as good as any other."""
    results = []
    for size in (2, 5, 64):
        editor = malmen("llama", mini_batch=size, tokens_per_pass=size)
        terms, found = editor.step_gradients(sample(editor, 7))
        results.append((float(terms["loss"]), found, editor.networks.state_dict()))
    for loss, found, state in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        for one, two in zip(found, results[0][1], strict=True):
            assert torch.allclose(one, two, rtol=1e-6, atol=1e-10)
        for name, value in state.items():
            assert torch.allclose(value, results[0][2][name]), name


def test_summed_loss_of_mini_batches_is_named() -> None:
    editor = malmen("gpt2", mini_batch=3, reduction="sum", c_loc=0.0)
    batch = sample(editor, 7)
    terms, _ = editor.step_gradients(batch)
    mean = malmen("gpt2", mini_batch=3, c_loc=0.0)
    once, _ = mean.step_gradients(batch)
    assert 2 < float(terms["edit_nll"] / once["edit_nll"]) < 4  # three mini-batches


def test_gradients_of_a_mini_batch_shrink_with_its_size_and_those_of_requests_do_not() -> None:
    model, tokenizer = language_model("llama")
    view, module = resolve(model), "model.layers.1.mlp.down_proj"
    encoded = encode_batch(tokenizer, toy_requests(4)).encoded
    rows = [(one.prompt_ids, one.target_ids) for one in encoded]
    alone = read_tokens(view, rows, [module], 1)
    together = read_tokens(view, rows, [module], 4)
    shared = read_tokens(view, rows, [module], 4, loss_over="mini_batch")
    assert torch.allclose(together.factors[module][1], alone.factors[module][1], atol=1e-12)
    assert torch.allclose(shared.factors[module][1] * 4, alone.factors[module][1], atol=1e-12)
    assert alone.sizes[module].tolist() == [1, 1, 1, 1]
    assert shared.sizes[module].tolist() == [4]
    masked = read_tokens(view, rows, [module], 4, token="mask")
    assert masked.sizes[module].tolist() == [sum(len(prompt) for prompt, _ in rows)]
    last = [int((masked.owners[module] == n).nonzero()[-1]) for n in range(4)]
    for side in (0, 1):
        got, wanted = masked.factors[module][side][last], alone.factors[module][side]
        assert torch.allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize("token", ["ans", "mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_is_pure_and_each_request_has_its_own(dtype: torch.dtype, token: Any) -> None:
    model, tokenizer = language_model("llama", dtype)
    editor = MALMEN(rank=3, step_size=0.05, token=token)
    editor.bind(model, tokenizer)
    editor.trained_batches += 1
    before = weights_hash(model)
    batch = encode_batch(tokenizer, toy_requests(5))
    editor.update_norms(editor.read(batch))
    state = {name: value.clone() for name, value in editor.state_dict().items()}
    for one, part in zip(editor.edit_independent(batch), batch.split(), strict=True):
        wanted = editor.edit(part)
        assert one.request_ids == part.ids
        for name, update in wanted.weights.items():
            assert torch.allclose(one.weights[name].dense(), update.dense(), rtol=0.05, atol=1e-4)
    assert weights_hash(model) == before
    for name, value in editor.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_an_update_is_stored_in_its_smaller_form() -> None:
    editor = malmen("gpt2")
    few, many = (encode_batch(editor.tokenizer, toy_requests(n)) for n in (2, 100))
    assert all(isinstance(u, LowRank) for u in editor.edit(few).weights.values())
    assert all(isinstance(u, Dense) for u in editor.edit(many).weights.values())


def test_the_wanted_change_is_written() -> None:
    """With next to no ridge, the output at the edit's own key changes by what the network wants."""
    editor = malmen("llama", layers=[1])
    batch = encode_batch(editor.tokenizer, toy_requests(3))
    tokens = editor.read(batch)
    with torch.no_grad():
        for network in editor.networks:
            network.log_ridges.fill_(-25.0)  # type: ignore[union-attr, operator]
    (handle,) = editor.weights
    (update,) = editor.solve(tokens, None)[handle.name]
    keys, _ = tokens.factors["model.layers.1.mlp.down_proj"]
    written = keys @ update.dense().mT
    assert float(update.shifts.norm()) > 1e-3
    assert torch.allclose(written, update.shifts, atol=1e-6)


def test_an_untrained_editor_says_so(caplog: pytest.LogCaptureFixture) -> None:
    editor = MALMEN(rank=2)
    editor.bind(*language_model("gpt2", torch.float32))
    with caplog.at_level(logging.WARNING):
        editor.edit(encode_batch(editor.tokenizer, toy_requests(1)))
    assert "MALMEN is not trained" in caplog.text


def test_default_layers_and_arguments() -> None:
    assert MALMEN.default_layers(12) == [6, 7, 8, 9, 10, 11]
    assert MALMEN.default_layers(28) == [22, 23, 24, 25, 26, 27]
    assert MALMEN.default_layers(5) == [3, 4]
    with pytest.raises(ValueError, match="mini_batch and tokens_per_pass of at least 1, got 1920"):
        MALMEN(mini_batch=0)
    rates = malmen("gpt2", step_size_lr=0.5).parameter_groups()
    assert [len(group["params"]) for group in rates] == [5, 2]
    assert rates[1]["lr"] == 0.5
