"""CaliNET's block beside networks of a T5 decoder, and its training, against the authors' model."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from lightning_edit.editors.neurons.beside_ffn import beside
from lightning_edit.editors.neurons.calinet import CalibrationBlock, adafactor
from lightning_edit.inference.module_adapter import attached
from lightning_edit.models.view import resolve
from tests.editors.golden import Golden, golden

NAMES = {"relu": {"read": "wi", "write": "wo"}}
NAMES["gated"] = {"read": "wi_1", "write": "wo", "gate": "wi_0"}


def parts(path: str) -> tuple[Golden, Any, dict[int, CalibrationBlock], dict[str, str]]:
    example = golden(f"CALINET/{path}")
    settings, kind = example.meta["settings"], path.rpartition("_")[2]
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=settings["vocab"],
            d_model=settings["d_model"],
            d_ff=settings["d_ff"],
            d_kv=settings["d_kv"],
            num_layers=settings["layers"],
            num_decoder_layers=settings["layers"],
            num_heads=settings["heads"],
            feed_forward_proj=settings["feed_forward_proj"],
            tie_word_embeddings=settings["tie_word_embeddings"],
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )
    own = {n.removeprefix("model."): v for n, v in example.tensors.items() if n[:6] == "model."}
    plain = {name: value for name, value in own.items() if "_ex." not in name}
    missing, unexpected = model.load_state_dict(plain, strict=False)
    assert not unexpected
    assert all("embed_tokens" in name or name == "lm_head.weight" for name in missing)
    model.tie_weights()
    blocks = {}
    for layer in map(int, settings["kb_layer"].split(",")):
        stem = f"decoder.block.{layer}.layer.2.DenseReluDense"
        weights = {
            ours: own[f"{stem}.{theirs}_ex.weight"].clone().requires_grad_()
            for ours, theirs in NAMES[kind].items()
        }
        blocks[layer] = CalibrationBlock(**weights)
    return example, model.eval().requires_grad_(False), blocks, NAMES[kind]


def answered(example: Golden, model: Any, blocks: Mapping[int, CalibrationBlock]) -> Any:
    branches = {layer: block.branch() for layer, block in blocks.items()}
    inputs = {name: example.tensors[name] for name in ("input_ids", "attention_mask", "labels")}
    with attached(model, beside(resolve(model), branches)):
        return model(**inputs)


@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_blocks_beside_a_decoders_networks_are_the_authors(kind: str) -> None:
    example, model, blocks, names = parts(f"t5_{kind}")
    found = answered(example, model, blocks)
    torch.testing.assert_close(found.logits, example.tensors["logits"], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found.loss, example.tensors["loss"], rtol=1e-5, atol=1e-5)
    for layer, block in blocks.items():
        gradients = torch.autograd.grad(found.loss, block.weights(), retain_graph=True)
        for name, gradient in zip(block._fields, gradients, strict=False):
            stem = f"grad.decoder.block.{layer}.layer.2.DenseReluDense"
            theirs = example.tensors[f"{stem}.{names[name]}_ex.weight"]
            assert (gradient - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_ten_steps_of_training_are_the_authors(kind: str) -> None:
    example, model, blocks, names = parts(f"train_{kind}")
    weights = [one for block in blocks.values() for one in block.weights()]
    optimizer = adafactor(weights, example.meta["settings"]["lr"])
    norms: Tensor = example.tensors["trace.grad_norm"]
    for step in range(10):
        loss = answered(example, model, blocks).loss
        torch.testing.assert_close(loss, example.tensors["trace.loss"][step], rtol=1e-4, atol=1e-5)
        for one, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            # Their clipping counts the gradients of the frozen model too.
            one.grad = gradient / max(1.0, float(norms[step]) + 1e-6)
        optimizer.step()
    for layer, block in blocks.items():
        stem = f"after_10.decoder.block.{layer}.layer.2.DenseReluDense"
        for name, value in zip(block._fields, block.weights(), strict=False):
            theirs = example.tensors[f"{stem}.{names[name]}_ex.weight"]
            assert (value.detach() - theirs).abs().max() <= 1e-4 * theirs.abs().max()
