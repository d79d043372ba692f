"""The library's types and shapes are checked while its tests run."""

from collections.abc import Callable, Sequence
from typing import Any, ForwardRef, Literal, TypeVar

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from lightning_edit.distributed.sharding import Share
from lightning_edit.functional.hypernet import drift_kl
from lightning_edit.models.loading import locate, parse_dtype
from tests.checking import checked, is_plain

WRONG: Any = 3
OTHER: Any = "3"
Shift = Float[Tensor, "b d"]
Plain = TypeVar("Plain", bound=Sequence[str])
Array = TypeVar("Array", bound=Shift)


@pytest.mark.parametrize("call", [parse_dtype, locate, lambda value: Share(rank=str(value))])
def test_a_wrong_type_is_refused(call: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeCheckError):
        call(WRONG)


def test_a_wrong_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "float32", "float32")
    with pytest.raises(TypeCheckError, match="return"):
        parse_dtype("float32")


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="drift_kl"):
        drift_kl(torch.zeros(2, 5), torch.zeros(3, 5))


def made(extra: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Functions inside a function, made anew at each call as the library's hooks are."""

    def add(value: int) -> int:
        return value + extra if extra else OTHER

    def times(left: Float[Tensor, "b c"], right: Float[Tensor, "b d"]) -> Float[Tensor, "c d"]:
        return left.T @ right if extra else left

    return checked(add, typechecker=beartype), checked(times, typechecker=beartype)


def test_functions_inside_a_function_are_checked_and_keep_what_they_close_over() -> None:
    (add, times), (other, _), (false, untrue) = made(1), made(2), made(0)
    assert (add(1), other(1), add(1)) == (2, 3, 2)
    for call in (add, other):
        with pytest.raises(TypeCheckError, match="value"):
            call("1")
    with pytest.raises(TypeCheckError, match="return"):
        false(1)
    left, right = torch.zeros(2, 3), torch.zeros(2, 4)
    assert times(left, right).shape == (3, 4)
    with pytest.raises(TypeCheckError, match="right"):
        times(left, right.T)
    with pytest.raises(TypeCheckError, match="return"):
        untrue(left, right)


@pytest.mark.parametrize(
    ("hint", "plain"),
    [
        (dict[str, tuple[int, ...]], True),
        (Literal["ans", "mask"] | None, True),
        (Callable[[Tensor], Tensor], True),
        (Plain, True),
        (Shift, False),
        (Array, False),
        (dict[str, Shift | None], False),
        (Callable[[Shift], Tensor], False),
        (list["Share"], False),
        (ForwardRef("Share"), False),
    ],
)
def test_what_names_an_array_or_a_name_is_not_plain(hint: Any, plain: bool) -> None:
    assert is_plain(hint) == plain
