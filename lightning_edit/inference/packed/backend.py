"""Replacement of a model's attention function inside a ``with`` block.

transformers looks up a model's attention function by name, so a replacement needs no code for a
model family. It replaces plain attention only, softmax(scaling · q kᵀ + mask) v; a model whose
attention computes more than that is detected and refused.

Axis names: ``h`` -- heads of the queries; ``m`` -- tokens of a row; ``e`` -- width of a head's
value; ``c`` -- of its key.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightning_edit.models.view import configs_of

#: Name of the attention function that computes softmax(scaling · q kᵀ + mask) v and no more.
_SDPA = "sdpa"
#: Arguments with which attention computes more than that.
_UNSUPPORTED_ARGUMENTS = ("position_bias", "cache", "softcap", "s_aux")

Attention = Callable[[nn.Module, Tensor, Tensor, Tensor, float | None], Tensor]
"""From the module, queries (1, h, m, c), keys, values and scaling to the result, (1, m, h, e)."""


class NotPackableError(Exception):
    """Attention of a model that cannot run packed, without padding; callers then pad."""


def packable(model: nn.Module) -> bool:
    """Return whether all of a model's attention is plain and can be replaced by name."""
    if not getattr(model, "_supports_attention_backend", False):
        return False
    return all(config._attn_implementation == _SDPA for config in configs_of(model))


@contextmanager
def replaced_attention(
    configs: Sequence[Any], attention: Attention, longest: int
) -> Iterator[None]:
    """Replace a model's attention function inside the ``with`` block.

    Args:
        configs: Those of a :func:`packable` model
            (:func:`~lightning_edit.models.view.configs_of`); it is called without a cache and
            without a mask.
        attention: Replacement for softmax(scaling · q kᵀ + mask) v.
        longest: Maximum number of tokens that one token attends to.

    Raises:
        NotPackableError: From a call of the model, if its attention computes more than that.
    """

    def replacement(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any
    ) -> tuple[Tensor, None]:
        window = rest.get("sliding_window")
        unsupported = rest.get("dropout") or any(
            rest.get(name) is not None for name in _UNSUPPORTED_ARGUMENTS
        )
        if mask is not None or unsupported or (window and window < longest):
            raise NotPackableError
        return attention(module, query, key, value, rest.get("scaling")), None

    name = f"lightning_edit_{id(replacement)}"
    ALL_ATTENTION_FUNCTIONS[name] = replacement
    try:
        for config in configs:
            config._attn_implementation = name
        yield
    finally:
        for config in configs:
            config._attn_implementation = _SDPA
        del ALL_ATTENTION_FUNCTIONS[name]  # type: ignore[no-untyped-call]  # transformers'
