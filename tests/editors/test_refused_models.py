"""What cannot be edited is named before anything is solved."""

import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model

import lightning_edit.editors as editors
from lightning_edit.editors import FTL, MEMIT, RECT, ROME
from lightning_edit.editors.base import Editor
from lightning_edit.exceptions import ArchitectureError, ConfigError, DataError, NotFiniteError
from lightning_edit.models.weights import weights_hash
from tests.models.tiny import build_tiny, build_tokenizer

REQUEST = {"prompt": "The capital of France is", "target": " Rome", "subject": "France"}
CONCRETE = [
    kind
    for name in editors.__all__
    if not inspect.isabstract(kind := getattr(editors, name)) and issubclass(kind, Editor)
]


@pytest.mark.parametrize("kind", CONCRETE, ids=lambda kind: kind.__name__)
def test_no_number_of_any_editor_may_be_nan(kind: type[Editor]) -> None:
    checked = 0
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if type(parameter.default) is not float:
            continue
        for value in (float("nan"), float("inf")):
            try:
                editor = kind(**{name: value})
            except ValueError:
                continue  # refused even earlier
            except TypeError:
                pytest.skip("is built around another editor")
            with pytest.raises(ConfigError, match=f"of {kind.__name__} is {value}"):
                editor.check_arguments()
        checked += 1
    assert checked or "lr" not in inspect.signature(kind.__init__).parameters


def test_a_wrapped_editor_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="lr of MEMIT is nan; give a finite number"):
        RECT(editor=MEMIT(lr=float("nan"))).check_arguments()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_of_the_model_must_be_finite(family: str, value: float) -> None:
    model = build_tiny(family)
    name, parameter = list(model.named_parameters())[-1]
    parameter.data.view(-1)[-1] = value
    with pytest.raises(NotFiniteError, match=rf"own weight {name} has NaN or infinite entries"):
        FTL().edit_model(model, build_tokenizer(), REQUEST)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model() -> None:
    model = build_tiny("gpt2")
    with pytest.raises(ArchitectureError, match=r"edit the model before `torch\.compile`"):
        FTL().bind(torch.compile(model), build_tokenizer())
    model.compile()
    with pytest.raises(ArchitectureError, match="is compiled"):
        FTL().bind(model, build_tokenizer())


# peft reads a deprecated attribute of transformers.
PEFT = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def lora(*modules: str) -> torch.nn.Module:
    return get_peft_model(
        build_tiny("llama"), LoraConfig(target_modules=list(modules), init_lora_weights=True)
    )


@PEFT
@pytest.mark.parametrize("module", ["down_proj", "up_proj", "o_proj"])
def test_an_adapter_on_an_edited_layer(module: str) -> None:
    for model in (lora(module), lora(module).base_model.model):
        with pytest.raises(ArchitectureError, match="merge it first"):
            FTL().bind(model, build_tokenizer())
    merged = lora(module).merge_and_unload()
    assert FTL().bind(merged, build_tokenizer()).language_model is merged


@PEFT
def test_an_adapter_elsewhere_does_no_harm() -> None:
    model = lora("q_proj")
    before = weights_hash(model)
    FTL().edit_model(model, build_tokenizer(), REQUEST).undo()
    assert weights_hash(model) == before


@pytest.mark.parametrize("editor", [FTL, ROME])
def test_no_requests_at_all(editor: type[Editor]) -> None:
    options = {} if editor is FTL else {"statistics": "identity", "layers": [1]}
    with pytest.raises(DataError, match="no requests to edit"):
        editor(**options).edit_model(build_tiny("gpt2"), build_tokenizer(), [])


@pytest.mark.parametrize("target", ["</s>", " Rome</s>", "<s> Rome"])
def test_a_special_token_is_no_answer(target: str) -> None:
    model = build_tiny("gpt2")
    before = weights_hash(model)
    with pytest.raises(DataError, match=r"(?:target .* holds the|it is a) special token"):
        FTL().edit_model(model, build_tokenizer(), REQUEST | {"target": target})
    assert weights_hash(model) == before
