"""Scores and texts by oneDNN equal those by PyTorch's own product; a run keeps the one it has."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import PassLayoutError
from lightning_edit.inference import onednn
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.module_adapter import OWN_FORWARD, ModuleAdapter, attach
from lightning_edit.inference.onednn import large_layers, multiplied_by_onednn
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.responder import Question, Statement
from tests.models.tiny import build_tiny, build_tokenizer

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN"
)

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
    assert ModelResponder(model, tokenizer).layout.products == "torch"  # nobody keeps it
    layout = PassLayout.choose(model, fastest=True)
    assert layout.products == Scorer(model, tokenizer).layout.products == "onednn"
    own = ModelResponder(model, tokenizer, layout=layout)
    scores, texts = own.ask(STATEMENTS, QUESTIONS)
    assert small
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
    layout = PassLayout.choose(build_tiny("llama"), fastest=True)
    layout.require_products(build_tiny("llama"))
    with pytest.raises(PassLayoutError, match="began with products by oneDNN, and no layer"):
        layout.require_products(build_tiny("llama").half())
    assert PassLayout.from_dict(layout.to_dict()) == layout
    # Runs that were begun before this was recorded.
    assert PassLayout.from_dict({"kind": "padded", "after_answer": []}).products == "torch"
    with pytest.raises(ValueError, match="`products` as one of torch, onednn and"):
        PassLayout.from_dict(layout.to_dict() | {"products": "cuda"})


# PyTorch's compiler uses what PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_which_layers_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = PassLayout.choose(build_tiny("llama"), fastest=True)
    assert layout.products == "torch"  # nothing large
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
    for part in (lambda model: model, lambda model: model.model.layers[1]):
        compiled = build_tiny("llama")
        part(compiled).compile()
        assert large_layers(compiled) == []
    assert large_layers(torch.compile(build_tiny("llama"))) == []


def test_weights_hooks_gradients_and_autocast_are_as_without(small: Any) -> None:
    layer = nn.Linear(3, 2)
    model = nn.Sequential(layer)
    hidden, seen = torch.randn(9, 3), []
    handle = layer.register_forward_hook(lambda *found: seen.append(found[2]))
    with multiplied_by_onednn(model), torch.no_grad():
        assert layer(input=hidden).shape == (9, 2)
        assert not small  # a call by name is the layer's own
        seen.clear()
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


def test_an_adapter_that_changes_nothing_changes_no_bit() -> None:
    model = nn.Sequential(nn.Linear(576, 576), nn.Linear(576, 576, bias=False))
    hidden = torch.randn(40, 576)

    class Same(ModuleAdapter):
        def act(self, hidden: Any, output: Any, call: Any) -> Any:
            return output

    def outputs() -> Any:
        with multiplied_by_onednn(model), torch.no_grad():
            return model(hidden)

    before = outputs()
    detach = attach(model, {"0": Same()})
    assert torch.equal(outputs(), before)
    detach()
    assert torch.equal(outputs(), before)
    assert [module.__dict__.keys() & {"forward", OWN_FORWARD} for module in model] == [set()] * 2


def test_an_error_and_a_nested_block_leave_nothing() -> None:
    model = nn.Sequential(nn.Linear(576, 576))

    @multiplied_by_onednn(model)
    @multiplied_by_onednn(model)
    def fail() -> None:
        assert "forward" in model[0].__dict__
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        fail()
    assert "forward" not in model[0].__dict__
    # What somebody else put there meanwhile is theirs.
    with multiplied_by_onednn(model):
        model[0].__dict__["forward"] = print
    assert model[0].__dict__["forward"] is print
