"""Parameter subset of an attribution: linear layers by role, pattern and block."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_edit.exceptions import ConfigError
from lightning_edit.models.view import BlockView, ModelView

#: Roles of linear layers in a block.
ROLES = ("mlp_down", "mlp_up", "mlp", "attention", "all")


def subset_modules(
    view: ModelView, subset: Sequence[str], layers: Sequence[int] | None = None
) -> list[str]:
    """Return the linear layers whose weights' gradients are compared, in the model's order.

    Args:
        view: The language model.
        subset: Roles (:data:`ROLES`), or patterns of module names such as ``*.q_proj``.
        layers: Blocks, of either stack where there are two; ``None``: all.

    Raises:
        ConfigError: If nothing is chosen, or a name or block is unknown.
    """
    if not subset:
        raise ConfigError(f"expected a parameter subset, got none; give some of {', '.join(ROLES)}")
    stacks = (view.encoder_blocks, view.blocks)
    if layers is not None:
        most = max(map(len, stacks))
        if not layers or (unknown := [one for one in layers if not 0 <= one < most]):
            got = unknown[0] if layers else "none"
            raise ConfigError(f"expected layers from 0 to {most - 1}, got {got}; choose from them")
        stacks = (_chosen(stacks[0], layers), _chosen(stacks[1], layers))
    roles: dict[str, set[str]] = {}
    for block in (*stacks[0], *stacks[1]):
        roles |= dict(_roles(block))
    for one in subset:
        if not any(_is_chosen(name, tags, one) for name, tags in roles.items()):
            raise ConfigError(
                f"the parameter subset {one!r} has no linear layer of this model; give some of "
                f"{', '.join(ROLES)}, or a pattern of names such as {next(iter(roles))}"
            )
    return [
        name for name, tags in roles.items() if any(_is_chosen(name, tags, one) for one in subset)
    ]


def _chosen(blocks: Sequence[BlockView], layers: Sequence[int]) -> tuple[BlockView, ...]:
    return tuple(blocks[one] for one in sorted(set(layers)) if one < len(blocks))


def _roles(block: BlockView) -> Iterator[tuple[str, set[str]]]:
    for name, module in block.module.named_modules(prefix=block.name):
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        if name == block.mlp_down:
            yield name, {"mlp_down", "mlp", "all"}
        elif name in block.mlp_up:
            yield name, {"mlp_up", "mlp", "all"}
        elif not name.startswith(f"{block.mlp}."):
            yield name, {"attention", "all"}
        else:
            yield name, {"all"}


def _is_chosen(name: str, roles: set[str], one: str) -> bool:
    return one in roles or (one not in ROLES and fnmatchcase(name, one))
