"""Hidden states that enter a block, kept from one reading of the same texts to the next.

A method that edits several layers reads keys layer by layer, each time on the model with the layers
below edited. Those edits change nothing below them, so the next reading goes on at the block that
was edited last.
"""

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_edit.inference.hooks import first_tensor, hooked, returning
from lightning_edit.models.view import ModelView


class BlockInputs:
    """Inputs of a block, by row of tokens; readings begin there and skip the blocks below.

    Args:
        view: The language model's structure.

    Attributes:
        keep: Number of the block whose inputs the next reading keeps. Until the last reading that
            uses them, nothing below this block may change, and no module below it may be read.
    """

    def __init__(self, view: ModelView) -> None:
        self.view = view
        self.keep = 0
        self._kept: dict[Hashable, tuple[int, Tensor, bool]] = {}

    @contextmanager
    def reused(self, row: Hashable) -> Iterator[int]:
        """Let a call of the model inside the block skip what is known; keep what comes next.

        Args:
            row: Name of the row of tokens that the model is called on.

        Yields:
            Number of the first block that runs.
        """
        with ExitStack() as stack:
            start = 0
            if row in self._kept:
                start, hidden, tuples = self._kept[row]
                *lower, last = self.view.blocks[:start]
                for block in lower:
                    stack.enter_context(returning(block.module, None, tuples))
                stack.enter_context(returning(last.module, hidden, tuples))
            if self.keep > start:
                below = self.view.block(self.keep - 1).module
                stack.enter_context(hooked(below, after=partial(self._record, row)))
            yield start

    def _record(self, row: Hashable, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = first_tensor(output).detach()
        self._kept[row] = self.keep, hidden, type(output) is tuple
