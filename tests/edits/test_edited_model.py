"""EditedModel: all requests of a call or none, names of their own, undo and redo to the bit."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lightning_edit.edits.edited_model import next_number
from lightning_edit.edits.edited_weights import _equal, _fingerprint
from lightning_edit.edits.unedited import unedited
from lightning_edit.exceptions import ArchitectureError, DataError, LedgerError
from lightning_edit.models.weights import Weight, weights_hash
from tests.toy import ToyEditor, toy_model, toy_requests, toy_tokenizer

FACTS = [{"prompt": r.prompt, "target": r.target, "subject": r.subject} for r in toy_requests(6)]


def one_by_one(fail_at: str | None = None) -> ToyEditor:
    editor = ToyEditor(fail_at)
    editor.batched = False  # type: ignore[misc]  # a flag of the class; here of one editor
    return editor


def test_a_call_writes_all_its_requests_or_none() -> None:
    model = toy_model()
    pristine = weights_hash(model)
    edited = one_by_one("edit-3").edit_model(model, toy_tokenizer(), FACTS[:2])
    before = weights_hash(model)
    with pytest.raises(RuntimeError, match="planted"):
        edited.edit(FACTS[2:5])
    assert weights_hash(model) == before
    assert edited.ledger.request_ids == ("edit-0", "edit-1")
    edited.undo()
    assert weights_hash(model) == pristine


def test_a_name_belongs_to_one_edit_for_the_life_of_the_handle() -> None:
    edited = one_by_one().edit_model(toy_model(), toy_tokenizer(), FACTS[:2])
    edited.undo(["edit-0"])
    edited.edit(FACTS[2])
    assert edited.ledger.request_ids == ("edit-1", "edit-2")


def test_redo_gives_the_bits_from_before_the_undo() -> None:
    model = toy_model()
    edited = one_by_one().edit_model(model, toy_tokenizer(), FACTS[:3])
    before = weights_hash(model)
    edited.undo(["edit-1"]).redo(["edit-1"])
    assert weights_hash(model) == before
    assert edited.ledger.request_ids == ("edit-0", "edit-1", "edit-2")
    with pytest.raises(LedgerError, match="no edit undone is called 'edit-1'"):
        edited.redo(["edit-1"])


def test_two_handles_on_one_model_do_not_destroy_each_other() -> None:
    model = toy_model()
    pristine = weights_hash(model)
    first = one_by_one().edit_model(model, toy_tokenizer(), FACTS[0])
    one = weights_hash(model)
    second = one_by_one().edit_model(model, toy_tokenizer(), FACTS[1])
    both = weights_hash(model)
    for refused in (first.undo, lambda: first.edit(FACTS[2])):
        with pytest.raises(LedgerError, match="changed outside this ledger"):
            refused()
    assert weights_hash(model) == both
    second.undo()
    assert weights_hash(model) == one
    first.undo()
    assert weights_hash(model) == pristine


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("way", ["data", "merged adapter"])
def test_a_change_that_torch_does_not_count_is_noticed(way: str) -> None:
    model = toy_model()
    edited = one_by_one().edit_model(model, toy_tokenizer(), FACTS[0])
    (name,) = edited.ledger.touched
    weight = model.get_parameter(name)
    count = weight._version
    if way == "data":
        weight.data[0, :2] = weight.data[0, :2].flip(0) + 1.0
    else:
        stem = name.removesuffix(".weight")
        config = LoraConfig(target_modules=[stem], r=2, init_lora_weights=False)
        get_peft_model(model, config).merge_and_unload()
    assert weight._version == count
    assert model.get_parameter(name) is weight
    merged = weights_hash(model)
    compared = unedited(edited.ledger)  # as an attribution or an export compares
    for refused in (edited.undo, lambda: edited.edit(FACTS[1]), compared.__enter__):
        with pytest.raises(LedgerError, match="by merging an adapter"):
            refused()
    assert weights_hash(model) == merged


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 8), (5, 3), (7,), (), (0, 4), (4, 0), (1, 4)])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_value_counts_in_a_weights_fingerprint(
    dtype: torch.dtype, shape: tuple[int, ...], transposed: bool
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if transposed and values.dim() < 3:
        values = values.t()
    if shape == (1, 4):
        values = torch.randn(3, 5).to(dtype)[:1, :4]  # contiguous for PyTorch, with a stride of 5
    handle = Weight("w", torch.nn.Parameter(values))
    before = _fingerprint(handle)
    assert _equal(before, _fingerprint(handle))
    for place in range(values.numel()):
        kept = values.flatten()[place].item()
        index = tuple(int(one) for one in torch.unravel_index(torch.tensor(place), values.shape))
        handle.parameter.data[index] = kept + 1
        assert not _equal(before, _fingerprint(handle))
        handle.parameter.data[index] = kept
        assert _equal(before, _fingerprint(handle))


@pytest.mark.parametrize("wider", [torch.float32, torch.float64])
def test_an_edited_model_in_another_type_is_undone(wider: torch.dtype) -> None:
    model = toy_model(torch.bfloat16)
    pristine = {name: value.clone() for name, value in model.state_dict().items()}
    edited = one_by_one().edit_model(model, toy_tokenizer(), FACTS[0])
    (name,) = edited.ledger.touched
    assert not torch.equal(model.get_parameter(name), pristine[name])
    model.to(wider)
    edited.undo()
    for one, value in model.state_dict().items():
        assert torch.equal(value, pristine[one].to(wider)), one


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_an_adapter_on_an_edited_model_is_merged_before_the_next_edit() -> None:
    model = toy_model()
    edited = one_by_one().edit_model(model, toy_tokenizer(), FACTS[0])
    (name,) = edited.ledger.touched
    get_peft_model(model, LoraConfig(target_modules=[name.removesuffix(".weight")], r=2))
    with pytest.raises(ArchitectureError, match=r"carries an adapter .* merge it first"):
        edited.edit(FACTS[1])


def test_training_in_between_is_noticed() -> None:
    model = toy_model()
    edited = one_by_one().edit_model(model, toy_tokenizer(), FACTS[0])
    (name,) = edited.ledger.touched
    with torch.no_grad():
        model.get_parameter(name).add_(0.1)
    with pytest.raises(LedgerError, match="by training"):
        edited.undo()


def test_one_id_is_not_its_letters() -> None:
    edited = one_by_one().edit_model(toy_model(), toy_tokenizer(), FACTS[:2])
    edited.undo("edit-1")
    assert edited.ledger.request_ids == ("edit-0",)
    assert edited.redo("edit-1").ledger.request_ids == ("edit-0", "edit-1")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": "x"}, "row 1: expected a field `target`, got none of that name; add it"),
        ({"promt": "x", "target": "y"}, "row 1: unknown field `promt`; .*Did you mean `prompt`"),
        ([], "there are no requests to edit; give at least one"),
    ],
)
def test_a_request_that_is_none_is_named(wrong: Any, message: str) -> None:
    model = toy_model()
    before = weights_hash(model)
    with pytest.raises(DataError, match=message):
        one_by_one().edit_model(model, toy_tokenizer(), wrong)
    assert weights_hash(model) == before


def test_numbers_of_names_are_plain_digits_alone() -> None:
    assert next_number(["edit-3", "edit-²", "edit-x", "mine-9"]) == 4
    assert next_number([]) == 0
