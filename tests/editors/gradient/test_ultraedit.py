"""UltraEdit: parity with the authors' code, and statistics that follow commits and undos."""

from typing import Any

import pytest
import torch

from lightning_edit.editors.gradient.ultraedit import REACHES, UltraEdit
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.functional.normalise import scale_alone, standardise, sums
from lightning_edit.types import EditRequest, Encoded
from tests.editors.golden import Golden, batch, golden, model, relative, tokenizer
from tests.models.tiny import TINY, build_tiny, build_tokenizer

# Distances found: 6e-6 in float32, 3e-8 (factors are kept in float32) against float64.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
MODULES = ["transformer.h.4.mlp.c_proj", "transformer.h.5.mlp.c_proj"]


def bound(example: Golden, dtype: torch.dtype) -> UltraEdit:
    editor = UltraEdit(modules=MODULES, eta=1e-3, variance="as_code", warmup=2)
    editor.bind(model(example.model_name, dtype), tokenizer(example.model_name))
    return editor


@pytest.mark.parametrize("mode", ["10x10-float32", "10x10-float64", "1x100-float32"])
def test_every_step_agrees(mode: str) -> None:
    example = golden(f"UltraEdit/tiny-gpt2/{mode}")
    dtype = torch.float64 if "float64" in mode else torch.float32
    editor = bound(example, dtype)
    ledger = Ledger(editor.language_model, editor)
    size = example.meta["config"]["dataset"]["n_edits"]
    whole = batch(example)
    for number, first in enumerate(range(0, len(whole), size), start=1):
        part = encode_batch(editor.tokenizer, whole.requests[first : first + size])
        delta = editor.edit(part)
        for name in MODULES:
            theirs = example.tensors.get(f"param_shift_{number}.{name}")
            if theirs is not None:
                found = relative(delta.weights[f"{name}.weight"].dense(), theirs.mT)
                assert found < TOLERANCE[dtype]
        ledger.commit(delta, part.requests)
    (seen,) = editor.seen.state().values()
    assert float(seen[0, 0]) == float(example.tensors["normalizer.(512, 128).n"])
    assert relative(seen[1] / seen[0], example.tensors["normalizer.(512, 128).mean"]) < 1e-3


def test_statistics_are_those_of_all_tokens_in_any_order() -> None:
    torch.manual_seed(0)
    parts = [3 + 2 * torch.randn(n, 5).double() for n in (4, 1, 7)]
    total = torch.stack([sums(part) for part in reversed(parts)]).sum(0)
    rows = torch.cat(parts)
    expected = (rows - rows.mean(0)) / rows.std(0)
    assert torch.allclose(standardise(rows, total), expected, atol=1e-6)


def test_as_code_overstates_the_variance_inside_mini_batches() -> None:
    rows = torch.randn(6, 3).double()
    excess = sums(rows, "as_code") - sums(rows)
    assert torch.allclose(excess[2], rows.var(0))
    assert torch.equal(excess[:2], torch.zeros(2, 3).double())
    assert torch.isfinite(sums(rows[:1], "as_code")).all()


def test_undo_restores_the_statistics() -> None:
    editor = UltraEdit(eta=0.1)
    language_model = TINY["gpt2"]().requires_grad_(False)
    requests = [
        EditRequest(str(number), f"The capital of {name} is", "Rome")
        for number, name in enumerate(["France", "Peru", "Chile"])
    ]
    edited = editor.edit_model(language_model, build_tokenizer(), requests[:1])
    (after_one,) = editor.seen.state().values()
    edited.edit(requests[1:])
    (after_three,) = editor.seen.state().values()
    assert float(after_three[0, 0]) > float(after_one[0, 0])
    edited.undo([request.id for request in requests[1:]])
    assert torch.equal(*editor.seen.state().values(), after_one)
    edited.undo()
    assert not editor.seen.state()


def test_the_size_of_a_pass_changes_nothing() -> None:
    example = golden("UltraEdit/tiny-gpt2/10x10-float64")
    editor = bound(example, torch.float64)
    part = encode_batch(editor.tokenizer, batch(example).requests[:12])
    wide = editor.edit(part)
    editor.rows_per_pass = 5
    narrow = editor.edit(part)
    for name, update in wide.weights.items():
        assert relative(narrow.weights[name].dense(), update.dense()) < 1e-6


def test_a_first_edit_of_one_token_is_written() -> None:
    rows = torch.randn(1, 4).double()
    assert torch.allclose(scale_alone(rows).square().mean(), torch.ones(1).double())
    example = golden("UltraEdit/tiny-gpt2/10x10-float32")
    editor = bound(example, torch.float32)
    single = next(
        request
        for request, encoded in zip(batch(example).requests, batch(example).encoded, strict=True)
        if len(encoded.target_ids) == 1
    )
    part = encode_batch(editor.tokenizer, [single])
    before = editor.edit(part).info["loss"]
    delta = editor.edit(part)
    with delta.applied(editor.language_model):
        assert editor.edit(part).info["loss"] < before


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma3_text"])
def test_the_step_follows_from_the_model(family: str) -> None:
    """It promises some times the loss to first order, and the loss falls as a small part of it."""
    requests = [
        EditRequest("a", "The capital of France is", "Lyon"),
        EditRequest("b", "Столица Италии —", "Арль"),
    ]
    language_model = build_tiny(family, vocab_size=300).requires_grad_(False)
    editor = UltraEdit(layers=[1]).bind(language_model, build_tokenizer(vocab_size=300))
    part = encode_batch(editor.tokenizer, requests)
    delta = editor.edit(part)
    lengths = sorted((len(one.target_ids) for one in part.encoded), reverse=True)
    assert len(set(lengths)) == 2
    sums_of_losses, before = [], []
    for one in part.encoded:
        nll = answer_nll(language_model, one)
        before.append(nll)
        sums_of_losses.append(nll * len(one.target_ids))
    promised = delta.info["first_order_drop"]
    reach = promised / (sum(sums_of_losses) / 2)
    assert REACHES[0] * 0.99 < reach < REACHES[-1] * 1.01
    # Of a thousandth of the step what it promises comes true.
    small = UltraEdit(layers=[1], eta=delta.info["eta"] / 1000).bind(
        language_model, editor.tokenizer
    )
    tiny = small.edit(part)
    assert tiny.info["first_order_drop"] < promised / 200
    with tiny.applied(language_model):
        after = [answer_nll(language_model, one) for one in part.encoded]
    fallen = sum(
        (b - a) * len(one.target_ids) for b, a, one in zip(before, after, part.encoded, strict=True)
    )
    assert fallen / 2 == pytest.approx(tiny.info["first_order_drop"], rel=0.1)


def answer_nll(language_model: Any, one: Encoded) -> float:
    ids = torch.tensor([[*one.prompt_ids, *one.target_ids]])
    with torch.no_grad():
        logits = language_model(ids).logits[0, len(one.prompt_ids) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(one.target_ids)))


def test_layers_beside_modules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got layers=\[1\] and modules=.* give one of the two"):
        UltraEdit(layers=[1], modules=MODULES)


@pytest.mark.parametrize("eta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_that_is_no_step_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta auto or finite > 0"):
        UltraEdit(eta=eta)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_each_request_has_the_smallest_step_that_writes_it(family: str) -> None:
    names = ["France", "Peru", "Chile", "Mali", "Italy", "Spain"]
    requests = [
        EditRequest(name, f"The capital of {name} is", target)
        for name, target in zip(names, ["Rome", "Lyon", "Paris"] * 2, strict=True)
    ]
    model = TINY[family]().requires_grad_(False)
    editor = UltraEdit(layers=[1]).bind(model, build_tokenizer())
    part = encode_batch(editor.tokenizer, requests)
    delta = editor.edit(part)
    loss = sum(answer_nll(model, one) * len(one.target_ids) for one in part.encoded) / len(part)
    fixed = UltraEdit(layers=[1], eta=1e-3).bind(model, editor.tokenizer).edit(part)
    unit = 1e-3 * loss / fixed.info["first_order_drop"]
    (found,), (step,) = delta.weights.values(), fixed.weights.values()
    # An update is linear in the steps: each column says the step of its request.
    reaches = found.left.norm(dim=0) / step.left.norm(dim=0) * 1e-3 / unit
    (owners,) = delta.columns.values()
    assert min(owners) == 0
    assert max(owners) == len(requests) - 1
    chosen = {}
    for owner, reach in zip(owners, reaches.tolist(), strict=True):
        assert min(abs(reach / one - 1) for one in REACHES) < 1e-3
        assert chosen.setdefault(owner, reach) == pytest.approx(reach, rel=1e-3)
    assert len({round(one, 2) for one in chosen.values()}) > 1
    with delta.applied(model):
        written = [answer_is_first(model, one) for one in part.encoded]
    assert sum(written) > 0
    assert all(written) or max(chosen.values()) == pytest.approx(REACHES[-1], rel=1e-3)


def test_steps_of_requests_are_the_same_where_the_whole_matrix_is_solved() -> None:
    """With more answer tokens than the layer has inputs there is no column for each token."""
    editor = UltraEdit(layers=[1]).bind(build_tiny("gpt2"), build_tokenizer())
    facts = [EditRequest(str(n), f"Land {n} is called", f"name {n} of {n * 7}") for n in range(90)]
    delta = editor.edit(encode_batch(editor.tokenizer, facts))
    assert delta.columns == {}
    with delta.applied(editor.language_model):
        after = [answer_nll(editor.language_model, one) for one in part_of(editor, facts)]
    before = [answer_nll(editor.language_model, one) for one in part_of(editor, facts)]
    assert sum(after) < sum(before)


def part_of(editor: UltraEdit, facts: list[EditRequest]) -> Any:
    return encode_batch(editor.tokenizer, facts).encoded


def answer_is_first(language_model: Any, one: Encoded) -> bool:
    ids = torch.tensor([[*one.prompt_ids, *one.target_ids]])
    with torch.no_grad():
        logits = language_model(ids).logits[0, len(one.prompt_ids) - 1 : -1]
    return bool(torch.equal(logits.argmax(-1), torch.tensor(one.target_ids)))
