"""Edit sites: the stack, the block and the linear layer that an editor changes.

A decoder-only model has one stack, which is called the decoder here too. Of a model of two stacks
(T5, BART) the encoder reads the prompt and the decoder its start tokens and the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.models.view import BlockView, ModelView, Stack

StackChoice = Literal["both", "encoder", "decoder"]
"""Stacks that an editor edits; ``both`` is the decoder where there is no encoder."""


class EditSite(NamedTuple):
    """Place of a linear layer in a model.

    Args:
        stack: The stack.
        block: Number of the block in that stack; ``None``: outside the blocks (an output head).
        module: Dotted module name of the layer.
    """

    stack: Stack
    block: int | None
    module: str


def stack_blocks(view: ModelView, stack: Stack) -> tuple[BlockView, ...]:
    """Return the blocks of one stack, from the first to the last.

    Args:
        view: The model.
        stack: The stack; a decoder-only model has an encoder of no blocks.
    """
    return view.encoder_blocks if stack == "encoder" else view.blocks


def chosen_stacks(view: ModelView, choice: StackChoice) -> tuple[Stack, ...]:
    """Return the stacks of a choice that a model has, the encoder first.

    Args:
        view: The model.
        choice: ``both``, or one of them.

    Raises:
        ArchitectureError: If the model lacks the stack.
    """
    if choice == "both":
        return ("encoder", "decoder") if view.is_encoder_decoder else ("decoder",)
    if choice == "encoder" and not view.is_encoder_decoder:
        raise ArchitectureError(
            f"stack='encoder' was asked for, but {type(view.model).__name__} is decoder-only and "
            "has no encoder; leave `stack` out"
        )
    return (choice,)


def site_blocks(view: ModelView, layers: Mapping[Stack, Sequence[int]]) -> list[BlockView]:
    """Return the blocks of some sites, stack after stack, in the order given.

    Args:
        view: The model.
        layers: Block numbers by stack.

    Raises:
        ArchitectureError: If a stack has no block of a number.
    """
    found = []
    for stack, numbers in layers.items():
        blocks = stack_blocks(view, stack)
        for number in numbers:
            if view.is_encoder_decoder and not 0 <= number < len(blocks):
                raise ArchitectureError(
                    f"layer {number} was asked for, but the {stack} has layers 0 to "
                    f"{len(blocks) - 1}; choose one of them, choose one stack with `stack`, or "
                    "name linear layers of either with `modules`"
                )
            found.append(blocks[number] if view.is_encoder_decoder else view.block(number))
    return found


def site_of(view: ModelView, module: str) -> EditSite:
    """Return where a linear layer is: its stack and the number of its block.

    Args:
        view: The model.
        module: Its dotted module name.
    """
    stacks: tuple[Stack, ...] = ("encoder", "decoder")
    for stack in stacks:
        for number, block in enumerate(stack_blocks(view, stack)):
            if module.startswith(f"{block.name}."):
                return EditSite(stack, number, module)
    return EditSite("decoder", None, module)


def in_cross_attention(view: ModelView, module: str) -> bool:
    """Return whether a linear layer belongs to a decoder block's cross-attention.

    Its keys and values are made of the encoder's hidden states, one for each token of the prompt.

    Args:
        view: The model.
        module: Its dotted module name.
    """
    outs = [block.cross_attention_out for block in view.blocks]
    return any(out and module.startswith(f"{out.rpartition('.')[0]}.") for out in outs)
