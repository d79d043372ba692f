"""Scores and texts by oneDNN equal those by PyTorch's own product; a run keeps the one it has."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_edit.inference import onednn
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.onednn import large_layers, multiplied_by_onednn
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.responder import Question, Statement
from tests.models.tiny import build_tiny, build_tokenizer

STATEMENTS = [
    Statement("The capital of France is", "Paris"),
    Statement("The capital of France is", "Lyon and Arles"),
    Statement("What is the capital of Italy?\n", "Rome"),
    Statement("法国的首都是", "巴黎"),
]
QUESTIONS = [Question(one.prompt, 6) for one in STATEMENTS]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Let every layer count as large; the shapes of what oneDNN multiplied."""
    shapes: list[torch.Size] = []
    own = onednn.multiply

    def counted(hidden: Any, weight: Any, bias: Any) -> Any:
        shapes.append(hidden.shape)
        return own(hidden, weight, bias)

    monkeypatch.setattr(onednn, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(onednn, "multiply", counted)
    return shapes


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma3_text", "t5", "bart"])
def test_scores_and_texts_are_those_of_the_models_own_products(family: str, small: Any) -> None:
    model, tokenizer = build_tiny(family), build_tokenizer(bos=True)
    own = ModelResponder(model, tokenizer)
    assert own.layout.products == "onednn"
    scores, texts = own.ask(STATEMENTS, QUESTIONS)
    assert min(shape[:-1].numel() for shape in small) >= onednn.LEAST_TOKENS
    small.clear()
    before = PassLayout(own.layout.kind)
    wanted, others = ModelResponder(model, tokenizer, layout=before).ask(STATEMENTS, QUESTIONS)
    assert not small
    assert texts == others
    for one, other in zip(scores, wanted, strict=True):
        assert one.nlls == pytest.approx(other.nlls, abs=1e-5)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_run_keeps_the_products_that_it_began_with(small: Any) -> None:
    layout = PassLayout.choose(build_tiny("llama"))
    assert PassLayout.from_dict(layout.to_dict()) == layout
    # Runs that were begun before this was recorded.
    assert PassLayout.from_dict({"kind": "padded", "after_answer": []}).products == "torch"
    with pytest.raises(ValueError, match="`products` as one of torch, onednn, got"):
        PassLayout.from_dict(layout.to_dict() | {"products": "cuda"})


# PyTorch's compiler uses what PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_which_layers_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PassLayout.choose(build_tiny("llama")).products == "torch"  # nothing large
    monkeypatch.setattr(onednn, "LEAST_NUMBERS", 32 * 48)
    model: Any = build_tiny("llama")
    mlp = [
        getattr(block.mlp, f"{kind}_proj")
        for block in model.model.layers
        for kind in ("gate", "up", "down")
    ]
    assert large_layers(model) == [*mlp, model.lm_head]
    mlp[0].weight = nn.Parameter(mlp[0].weight.detach().flatten())  # as FSDP shards it
    assert mlp[0] not in large_layers(model)
    assert large_layers(build_tiny("llama").half()) == []
    compiled = build_tiny("llama")
    compiled.compile()
    assert large_layers(compiled) == []
    assert large_layers(torch.compile(build_tiny("llama"))) == []


def test_weights_hooks_gradients_and_autocast_are_as_without(small: Any) -> None:
    layer = nn.Linear(3, 2)
    model = nn.Sequential(layer)
    hidden, seen = torch.randn(9, 3), []
    handle = layer.register_forward_hook(lambda *found: seen.append(found[2]))
    with multiplied_by_onednn(model), torch.no_grad():
        layer.weight = nn.Parameter(torch.ones(2, 3))  # an edit that puts another tensor there
        torch.testing.assert_close(model(hidden), hidden.sum(1, keepdim=True) + layer.bias)
        assert len(small) == len(seen) == 1
        assert model(hidden.double().float()[:3]).shape == (3, 2)  # too few tokens
        with torch.enable_grad():
            model(hidden).sum().backward()
    assert layer.weight.grad is not None
    with torch.autocast("cpu", dtype=torch.bfloat16), multiplied_by_onednn(model), torch.no_grad():
        assert model(hidden).dtype == torch.bfloat16
    assert len(small) == 1
    handle.remove()
