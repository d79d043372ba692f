"""Replace a model's attention, for the length of a ``with`` block.

transformers looks a model's attention function up by name, so another one needs no code of a model
family. It stands in for plain attention only, softmax(scaling · q kᵀ + mask) v; a model whose
attention is more than that is found out and left alone.

Axis names: ``h`` -- heads of the queries; ``m`` -- tokens of a row; ``e`` -- width of a head's
value; ``c`` -- of its key.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

#: The attention function that is softmax(scaling · q kᵀ + mask) v and no more.
_OWN = "sdpa"
#: Arguments that make attention more than that.
_MORE = ("position_bias", "cache", "softcap", "s_aux")

Attention = Callable[[nn.Module, Tensor, Tensor, Tensor, float | None], Tensor]
"""From the module, queries (1, h, m, c), keys, values and scaling to the result, (1, m, h, e)."""


class NotPackableError(Exception):
    """The model's attention cannot be told which tokens belong together; callers then pad."""


def configs_of(model: nn.Module) -> list[Any]:
    """Return the distinct configs by which a model's modules choose their attention."""
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


def packable(model: nn.Module) -> bool:
    """Say whether all of a model's attention can be replaced by name, and is nothing special."""
    if not getattr(model, "_supports_attention_backend", False):
        return False
    return all(config._attn_implementation == _OWN for config in configs_of(model))


@contextmanager
def replaced_attention(model: nn.Module, attention: Attention, longest: int) -> Iterator[None]:
    """Let a model attend in another way inside the ``with`` block.

    Args:
        model: A :func:`packable` model; it is called without a cache and without a mask.
        attention: Stands in for softmax(scaling · q kᵀ + mask) v.
        longest: Most tokens that one sees.

    Raises:
        NotPackableError: From a call of the model, if its attention is more than that.
    """

    def own(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any
    ) -> tuple[Tensor, None]:
        window = rest.get("sliding_window")
        more = rest.get("dropout") or any(rest.get(name) is not None for name in _MORE)
        if mask is not None or more or (window and window < longest):
            raise NotPackableError
        return attention(module, query, key, value, rest.get("scaling")), None

    name = f"lightning_edit_{id(own)}"
    configs = configs_of(model)
    ALL_ATTENTION_FUNCTIONS[name] = own
    try:
        for config in configs:
            config._attn_implementation = name
        yield
    finally:
        for config in configs:
            config._attn_implementation = _OWN
        del ALL_ATTENTION_FUNCTIONS[name]  # type: ignore[no-untyped-call]  # transformers'
