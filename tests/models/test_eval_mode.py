"""A block in eval mode leaves every module in the mode that it had."""

import pytest
from torch import nn

from lightning_edit.models.eval_mode import in_eval_mode


def mixed() -> nn.Sequential:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(2, 2), nn.Dropout())).train()
    model[0].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_modes_are_restored_also_after_an_error_and_a_change() -> None:
    model = mixed()
    before = modes(model)
    assert before == [True, False, True, True, True]

    def fail() -> None:
        with in_eval_mode(model):
            assert not any(modes(model))
            with in_eval_mode(model):
                assert not any(modes(model))
            assert not any(modes(model))
            model.train()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert modes(model) == before


def test_what_has_no_mode_is_let_through() -> None:
    with in_eval_mode(object()):
        pass
