"""Captured, replaced and selected activations equal what a plain forward pass gives."""

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.hooks import (
    capture,
    first_tensor,
    replace_input,
    replace_output,
    select_head_positions,
)
from lightning_edit.models.view import resolve
from tests.models.tiny import CONFIGS, HIDDEN, LAYERS, TINY, VOCAB, batch_of


@cache
def tiny(family: str) -> PreTrainedModel:
    return TINY[family]()


def logits(model: PreTrainedModel, **changes: Any) -> Tensor:
    with torch.no_grad():
        return model(**(batch_of(model) | changes), use_cache=False).logits


def no_hooks_left(model: PreTrainedModel) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("family", CONFIGS)
def test_head_sees_only_selected_positions(family: str) -> None:
    """Soft-capping (Gemma), scaling (T5), a bias on logits (BART) and head biases still apply."""
    model = tiny(family)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(0))
    rows, positions = torch.tensor([1, 0, 1, 0]), torch.tensor([6, 2, 0, 2])
    full = logits(model)
    with select_head_positions(model, (rows, positions)):
        chosen = logits(model)
    assert chosen.shape == (4, 1, VOCAB)
    torch.testing.assert_close(chosen[:, 0], full[rows, positions], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(model), full, rtol=0, atol=0)


def test_selected_logits_carry_gradients() -> None:
    model = tiny("llama")
    delta = torch.zeros(HIDDEN, requires_grad=True)
    down = resolve(model).blocks[1].module
    with (
        replace_output(down, lambda hidden: hidden + delta),
        select_head_positions(model, (torch.tensor([0]), torch.tensor([3]))),
    ):
        model(**batch_of(model)).logits.logsumexp(-1).sum().backward()
    assert delta.grad is not None
    assert delta.grad.abs().sum() > 0


@pytest.mark.parametrize("family", CONFIGS)
def test_blocks_chain(family: str) -> None:
    """A block's input is the output of the one before it, as tensor, tuple or keyword argument."""
    model = tiny(family)
    names = [block.name for block in resolve(model).blocks]
    with torch.no_grad(), capture(model, dict.fromkeys(names, "both")) as found:
        model(**batch_of(model), use_cache=False)
    for before, after in pairwise(names):
        torch.testing.assert_close(found[f"{before}@output"], found[f"{after}@input"])
    assert no_hooks_left(model)


@pytest.mark.parametrize("family", CONFIGS)
def test_attention_output_is_the_only_way_between_positions(family: str) -> None:
    """With it silenced, a block at one position no longer depends on another token."""
    model = tiny(family)
    block = resolve(model).blocks[0]
    attention = model.get_submodule(block.attention_out)
    batch = batch_of(model)
    key = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"

    def at_third(first: int) -> Tensor:
        ids = batch[key].clone()
        ids[:, 0] = first
        with torch.no_grad(), capture(model, {block.name: "output"}) as found:
            model(**(batch | {key: ids}), use_cache=False)
        return found[block.name][:, 3]

    assert not torch.allclose(at_third(5), at_third(6))
    with replace_output(attention, torch.zeros_like):
        torch.testing.assert_close(at_third(5), at_third(6))


@pytest.mark.parametrize("family", CONFIGS)
def test_replacing_an_output_equals_replacing_it_by_hand(family: str) -> None:
    model = tiny(family)
    block = resolve(model).blocks[-1]
    plain = logits(model)

    def silence_third(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[:, 3] = 0
        return hidden

    module = model.get_submodule(block.mlp)
    with (
        replace_output(module, silence_third, within=model),
        torch.no_grad(),
        capture(model, {block.mlp: "output"}) as found,
    ):
        changed = model(**batch_of(model), use_cache=False).logits
    assert not found[block.mlp][:, 3].any()
    # The last block's MLP acts on its own position only.
    assert not torch.allclose(changed[:, 3], plain[:, 3])
    keep = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(changed[:, keep], plain[:, keep])
    with replace_output(block.module, torch.clone):
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    assert no_hooks_left(model)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "t5"])
def test_replacing_an_input_reaches_keyword_arguments(family: str) -> None:
    """Llama's attention gets its hidden state by keyword, blocks get it by position."""
    model = tiny(family)
    block = resolve(model).blocks[-1]
    owner = block.attention_out.rpartition(".")[0]
    for name in (owner, block.name):
        module, shapes = model.get_submodule(name), []

        def note(hidden: Tensor, shapes: list[Any] = shapes) -> Tensor:
            shapes.append(hidden.shape)
            return hidden * 0

        plain = logits(model)
        with replace_input(module, note):
            assert not torch.allclose(logits(model), plain)
        assert shapes == [(2, 7, HIDDEN)]


def test_stop_ends_the_forward_after_the_last_wanted_module() -> None:
    model = tiny("gpt2")
    ran: list[int] = []
    blocks = resolve(model).blocks
    handles = [
        block.module.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(blocks)
    ]
    wanted = {blocks[0].mlp: "output", blocks[1].mlp_down: "input"}
    with torch.no_grad(), capture(model, wanted, stop=True) as found:
        model(**batch_of(model))
    for handle in handles:
        handle.remove()
    assert ran == [0]
    assert len(blocks) == LAYERS > 1
    assert found.keys() == {blocks[0].mlp, blocks[1].mlp_down}
    assert no_hooks_left(model)


def test_hooks_are_removed_after_an_error() -> None:
    model = tiny("gpt2")
    with pytest.raises(RuntimeError, match="boom"), capture(model, {"transformer.h.0": "both"}):
        raise RuntimeError("boom")
    with (
        pytest.raises(ArchitectureError, match=r"no module 'transformer\.h\.7'.*doctor MODEL"),
        capture(model, {"transformer.h.0": "input", "transformer.h.7": "input"}),
    ):
        pass
    assert no_hooks_left(model)


def test_modules_without_hidden_states_and_models_without_heads_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="got str; hook another module"):
        first_tensor(("text",))
    index = (torch.tensor([0]), torch.tensor([0]))
    with (
        pytest.raises(ArchitectureError, match=r"no output head.*AutoModelForCausalLM"),
        select_head_positions(torch.nn.Linear(2, 2), index),
    ):
        pass


# Prompts of encoder-decoder models are read by the encoder and padded on the right.
@pytest.mark.parametrize("family", [name for name in CONFIGS if name not in ("t5", "bart")])
def test_left_padding_with_position_ids_equals_no_padding(family: str) -> None:
    """GPT-2 is wrong under left padding without position_ids; with them every decoder is right."""
    model = tiny(family)
    ids = batch_of(model)["input_ids"]
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(ids)], dim=1)
    changes = {"input_ids": padded, "attention_mask": mask}
    if family == "gpt2":
        assert not torch.allclose(logits(model, **changes)[:, 3:], logits(model), atol=1e-2)
    if family != "opt":  # OPT counts positions from the mask itself
        changes["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    torch.testing.assert_close(logits(model, **changes)[:, 3:], logits(model), rtol=1e-4, atol=1e-4)
