"""Parity with the authors' own code: EMMET, AlphaEdit and MEMIT with a history."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import EMMET, MEMIT, AlphaEdit
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.models.weights import weight, weights_hash
from tests.editors.golden import Golden, batch, golden, model, relative, statistics, tokenizer

#: Distances found: EMMET 1e-6, MEMIT 7e-6 and AlphaEdit 1e-5 after three batches, AlphaEdit 9e-5 on
#: Llama, where the authors' projector (singular vectors in float32) is 1e-4 off itself.
TOLERANCE: dict[type, float] = {EMMET: 1e-5, MEMIT: 5e-5, AlphaEdit: 2e-4}


def arguments(editor_class: type, hparams: dict[str, Any], seq: bool) -> dict[str, Any]:
    if editor_class is AlphaEdit:
        return {
            "norm_weight": float(hparams["L2"]),
            "null_threshold": hparams["nullspace_threshold"],
            "null_threshold_kind": "absolute",
        }
    own: dict[str, Any] = {"moment_weight": float(hparams["mom2_update_weight"])}
    if editor_class is EMMET:
        return own | {
            "damping": hparams["emmet_lambda"],
            "norm_weight": float(hparams["update_norm_lambda"]),
        }
    return own | {"keep_history": seq}


def bound(editor_class: type, example: Golden, folder: Path) -> Any:
    language_model = model(example.model_name)
    hparams = example.meta["hparams"]
    editor = editor_class(
        layers=hparams["layers"],
        statistics=statistics(example.model_name, language_model, folder),
        steps=hparams["v_num_grad_steps"],
        lr=float(hparams["v_lr"]),
        kl_factor=hparams["kl_factor"],
        weight_decay=hparams["v_weight_decay"],
        clamp=float(hparams["clamp_norm_factor"]),
        context_templates=example.templates,
        **arguments(editor_class, hparams, "seq" in example.meta["mode"]),
    )
    return editor.bind(language_model, tokenizer(example.model_name))


def theirs(example: Golden, key: str, shape: torch.Size) -> torch.Tensor:
    tensor = example.tensors[key]
    return tensor if tensor.shape == shape else tensor.mT


@pytest.mark.parametrize(
    ("editor_class", "path"),
    [
        (EMMET, "EMMET/tiny-gpt2/single-float32"),
        pytest.param(EMMET, "EMMET/tiny-gpt2/batch100-float32", marks=pytest.mark.slow),
        (AlphaEdit, "AlphaEdit/tiny-gpt2/single-float32"),
        (AlphaEdit, "AlphaEdit/tiny-llama/single-float32"),
    ],
)
def test_deltas_agree(editor_class: type, path: str, tmp_path: Path) -> None:
    example = golden(path)
    editor = bound(editor_class, example, tmp_path)
    before = weights_hash(editor.language_model)
    delta: Delta = editor.edit(batch(example))
    assert weights_hash(editor.language_model) == before
    assert len(delta.weights) == len(example.meta["hparams"]["layers"])
    for name, update in delta.weights.items():
        ours = update.dense()
        assert (
            relative(ours, theirs(example, f"delta.{name}", ours.shape)) < TOLERANCE[editor_class]
        )


def test_projector_and_keys_of_the_edited_model_agree(tmp_path: Path) -> None:
    example = golden("AlphaEdit/tiny-gpt2/single-float32")
    editor = bound(AlphaEdit, example, tmp_path)
    delta = editor.edit(batch(example))
    editor.remember(delta)
    for number, layer in enumerate(example.meta["hparams"]["layers"]):
        U = editor.bound_layers[layer].null_space
        assert relative(U @ U.mT, example.tensors["P"][number]) < 1e-4
        history = editor.past.keys(layer)
        assert relative(history, example.tensors["cache_c_final"][number]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("editor_class", [AlphaEdit, pytest.param(MEMIT, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "batches", [pytest.param(3, id="three"), pytest.param(10, id="ten", marks=pytest.mark.slow)]
)
def test_sequences_with_a_history_agree(editor_class: type, batches: int, tmp_path: Path) -> None:
    folder = "MEMIT_seq" if editor_class is MEMIT else "AlphaEdit"
    example = golden(f"{folder}/tiny-gpt2/seqb10-float32")
    editor = bound(editor_class, example, tmp_path)
    names = [editor.view.parameter(layer) for layer in editor.edited_layers]
    before = {name: weight(editor.language_model, name).read() for name in names}
    ledger = Ledger(editor.language_model, editor)
    for number in range(batches):
        requests = example.requests[10 * number : 10 * number + 10]
        ledger.commit(editor.edit(encode_batch(editor.tokenizer, requests)), requests)
        key = f"delta_after_{number + 1}" if number < 3 else "delta"
        # Every batch is searched on a rounded model, so the distance grows. In MEMIT's eighth batch
        # one request turns 2e-5 between two models' weights into 5e-3 between its targets: in
        # float64 this sequence ends 4.7e-3 to 8.4e-3 away from the authors' float32 run, to 1e-12
        # the same with texts padded or in one row, and in float32 on either side.
        late = 1e-2 if editor_class is MEMIT else 5e-4
        limit = TOLERANCE[editor_class] if number < 3 else late
        for name in names if number < 3 or number == 9 else []:
            total = weight(editor.language_model, name).read() - before[name]
            assert relative(total, theirs(example, f"{key}.{name}", total.shape)) < limit
