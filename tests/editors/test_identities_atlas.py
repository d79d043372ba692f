"""How the methods hang together, on the embedded model with its real statistics."""

from typing import Any

import pytest
import torch

from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import D4S, EMMET, ENCORE, MEMIT, NSE, PMET, AlphaEdit
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditBatch

pytestmark = pytest.mark.slow  # minutes in all: whole edits, studies and traces of a real model

#: One layer and the bare prompt only: keys then do not move, and every identity is exact.
ONE: dict[str, Any] = {"layers": [1], "context_templates": ["{}"], "steps": 8}
FACTORS = 1e-5  # deltas are stored as float32 factors


@pytest.fixture(scope="module")
def atlas() -> tuple[Any, Any, EditBatch]:
    model, tokenizer = load_language_model("atlas")
    data = AtlasDataModule(limit=6)
    data.prepare_data()
    data.setup("test")
    return model.requires_grad_(False), tokenizer, encode_batch(tokenizer, data.requests("test"))


def dense(delta: Delta) -> torch.Tensor:
    (update,) = delta.weights.values()
    return update.dense()


def encode_halves(tokenizer: Any, batch: EditBatch) -> tuple[EditBatch, EditBatch]:
    requests = batch.requests
    half = len(requests) // 2
    return encode_batch(tokenizer, requests[:half]), encode_batch(tokenizer, requests[half:])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_ridge_emmet_is_memit(atlas: Any) -> None:
    model, tokenizer, batch = atlas
    emmet = EMMET(1000.0, damping=0.05, **ONE).bind(model, tokenizer)
    memit = MEMIT(50.0, **ONE).bind(model, tokenizer)
    assert distance(dense(emmet.edit(batch)), dense(memit.edit(batch))) < FACTORS


def test_one_fact_of_emmet_is_the_limit_of_memit(atlas: Any) -> None:
    model, tokenizer, batch = atlas
    one = batch.split()[0]
    emmet = EMMET(**ONE).bind(model, tokenizer).edit(one)
    assert emmet.info["unwritten"][0] < 1e-9
    apart = [
        distance(dense(MEMIT(lam, **ONE).bind(model, tokenizer).edit(one)), dense(emmet))
        for lam in (100.0, 1.0, 0.001)
    ]
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 1e-3


@pytest.mark.parametrize(
    "editor",
    [
        MEMIT(20.0, keep_history=True, **ONE),
        ENCORE(20.0, norm_weight=0.5, **ONE),
        AlphaEdit(2.0, 0.2, "relative", **ONE),
        D4S(20.0, **ONE),
    ],
    ids=lambda editor: type(editor).__name__,
)
def test_a_sequence_with_history_is_the_joint_batch(atlas: Any, editor: Any) -> None:
    model, tokenizer, batch = atlas
    editor.bind(model, tokenizer)
    before = weights_hash(model)
    targets = editor.search(batch)
    joint = dense(editor.write(batch, targets))
    ledger = Ledger(model, editor)
    for number, part in enumerate(batch.split()):
        ledger.commit(editor.write(part, targets.only(number)), part.requests)
    total = torch.stack([dense(delta) for delta in ledger.deltas]).sum(0)
    ledger.undo(ledger.request_ids)
    assert weights_hash(model) == before
    assert distance(total, joint) < 1e-4


@pytest.mark.parametrize("neurons", [None, 0.5])
def test_second_batches_are_what_the_papers_write(atlas: Any, neurons: float | None) -> None:
    model, tokenizer, batch = atlas
    first, second = encode_halves(tokenizer, batch)
    arguments: dict[str, Any] = {"layers": [1], "steps": 6}
    editor: Any = ENCORE(30.0, norm_weight=2.0, **arguments)
    if neurons is not None:
        editor = NSE(30.0, neurons=neurons, passes=1, reached=0.0, **arguments)
    editor.bind(model, tokenizer)
    ledger = Ledger(model, editor)
    ledger.commit(editor.edit(first), first.requests)
    past = editor.past.keys(1)
    targets, texts = editor.search(second), editor.key_texts(second)
    K = editor.mean_keys(texts, [1])[1].mT
    R = targets.wanted.double() - editor.current_values(texts[:: len(editor.templates)])
    delta = dense(editor.write(second, targets))
    ledger.undo(ledger.request_ids)
    system = 30.0 * editor.bound_layers[1].moment.double() + past
    expected = torch.zeros_like(delta)
    if neurons is None:
        identity = torch.eye(len(K), dtype=K.dtype)
        expected = R.mT @ K.mT @ torch.linalg.inv(system + 2.0 * identity + K @ K.mT)
    else:
        order = K.abs().sum(1).argsort(descending=True)
        activity = K.abs().sum(1)[order].cumsum(0)
        J = order[activity <= neurons * activity[-1]]
        part = system[J][:, J] + K[J] @ K[J].mT
        expected[:, J] = R.mT @ K[J].mT @ torch.linalg.inv(part)
        assert 0 < len(J) < len(K)
    assert past.any()
    assert distance(delta, expected) < FACTORS


def test_pmet_divides_by_the_square_root_of_the_layers_left(atlas: Any) -> None:
    model, tokenizer, batch = atlas
    editor = PMET(20.0, layers=[0, 1], steps=6).bind(model, tokenizer)
    targets, texts = editor.search(batch), editor.key_texts(batch)
    K = editor.mean_keys(texts, [0])[0].mT
    mlp = targets.wanted[:, targets.wanted.shape[1] // 2 :].double()
    now = editor.at_subjects(texts[:: len(editor.templates)], editor.view.block(1).mlp, "output")
    delta = editor.write(batch, targets).weights[editor.view.parameter(0)].dense()
    system = 20.0 * editor.bound_layers[0].moment.double() + K @ K.mT
    expected = (mlp - now).mT / 2**0.5 @ K.mT @ torch.linalg.inv(system)
    assert distance(delta, expected) < FACTORS


def test_alphaedit_leaves_what_text_uses_untouched(atlas: Any) -> None:
    model, tokenizer, batch = atlas
    alpha = AlphaEdit(1.0, 0.2, "relative", **ONE).bind(model, tokenizer)
    delta = dense(alpha.edit(batch))
    moment = alpha.bound_layers[1].moment.double()
    values, vectors = torch.linalg.eigh(moment)
    used = vectors[:, values >= 0.2 * values.mean()]
    assert 0 < used.shape[1] < len(values)
    assert (delta @ used).norm() < FACTORS * delta.norm()
    # The mean squared change of the layer's output on text, for an update of norm 1.
    identity = MEMIT(20.0, statistics="identity", **ONE).bind(model, tokenizer)
    harm = [
        float((one @ moment * one).sum() / (one**2).sum())
        for one in (delta, dense(identity.edit(batch)))
    ]
    assert harm[0] < 0.2 * float(values.mean())
    assert harm[0] < 0.1 * harm[1]


def test_encore_ends_a_search_when_the_target_was_likeliest_often_enough(atlas: Any) -> None:
    model, tokenizer, batch = atlas
    search: dict[str, Any] = {"layers": [0], "clamp": 4.0, "steps": 25, "threshold": 0.0}
    first, third, never = (
        ENCORE(patience=patience, **search).bind(model, tokenizer).search(batch)
        for patience in (1, 3, 100)
    )
    assert never.steps == [24] * len(batch)
    assert sum(steps < 24 for steps in third.steps) >= len(batch) / 2
    for early, late in zip(first.steps, third.steps, strict=True):
        # It may be lost again in between, which makes the third time later still.
        assert late >= min(24, early + 2)
    assert first.delta.norm() < never.delta.norm()


def test_pmet_ends_a_search_when_it_is_certain_and_calm(atlas: Any) -> None:
    model, tokenizer, batch = atlas
    search: dict[str, Any] = {"clamp": 4.0, "layers": [0], "threshold": 0.0, "steps": 25}
    calm = PMET(calm=0.5, **search).bind(model, tokenizer).search(batch).steps
    never = PMET(calm=-1.0, **search).bind(model, tokenizer).search(batch).steps
    assert never == [24] * len(batch)
    assert min(calm) < 24
