"""Default layers of an editor, by the size of the model, and the memory of an edit there."""

from typing import ClassVar

from lightning_edit.models.sites import stack_blocks
from lightning_edit.models.view import ModelView, Stack


class LayerDefaults:
    """Which blocks are edited where ``layers`` is not given."""

    stacks: ClassVar[tuple[Stack, ...]] = ("decoder",)
    """Stacks of an encoder-decoder model that the editor edits by default."""

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layers (block indices) to edit when ``layers`` is not given.

        Args:
            num_blocks: Number of blocks of the language model.

        Returns:
            Block indices, lowest first. Empty for an editor without layers.
        """
        return []

    @classmethod
    def layers_for_null(cls, num_blocks: int) -> list[int]:
        """Return the value of ``layers`` that ``None`` stands for.

        All default layers, unless some of them have an argument of their own.

        Args:
            num_blocks: Number of blocks of the language model.
        """
        return cls.default_layers(num_blocks)

    @classmethod
    def default_sites(cls, view: ModelView) -> dict[Stack, list[int]]:
        """Return the default layers (block indices) of each stack that is edited by default.

        Args:
            view: The model's structure; a decoder-only model has one stack, the decoder.
        """
        sizes = {stack: len(stack_blocks(view, stack)) for stack in cls.stacks}
        return {stack: cls.default_layers(size) for stack, size in sizes.items() if size}

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate the extra memory of one edit, without the model itself.

        Args:
            view: The model's structure.
            layers: Edited blocks.

        Returns:
            Bytes.
        """
        return 0
