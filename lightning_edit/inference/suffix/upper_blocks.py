"""Passes of fixed texts that run only the blocks from one on: those below are computed once.

Whatever acts inside a block changes nothing below it. So the hidden states that enter the block are
stored, and every further pass skips the blocks below.
"""

from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.inference.answer_pass import logits_at, wide
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.hooks import capture, returning, returns_tuples
from lightning_edit.models.view import ModelView


class UpperBlocks:
    """Teacher-forced passes over fixed rows, with the blocks below one computed once.

    Args:
        view: The language model's structure.
        rows: Prompts and answers, on the model's device.
        block: Number of the lowest block that runs again; nothing that changes between passes may
            act below it.
    """

    def __init__(self, view: ModelView, rows: AnswerRows, block: int) -> None:
        self.view = view
        self.rows = rows
        self.inputs = {"input_ids": rows.ids, "attention_mask": rows.mask.long()}
        self._below = [one.module for one in view.blocks[:block]]
        self._hidden: Tensor | None = None
        self._tuples = False
        if self._below:
            last = view.block(block - 1)
            with (
                torch.no_grad(),
                returns_tuples(last.module) as tuples,
                capture(view.model, {last.name: "output"}, stop=True) as captured,
            ):
                view.model(**self.inputs, use_cache=False)
            self._hidden, self._tuples = captured[last.name], tuples[0]

    def logits(self) -> Float[Tensor, "a v"]:
        """Return the logits that predict the answers' tokens, in at least single precision.

        Gradients flow to what acts at or above the block.
        """
        with ExitStack() as stack:
            for module in self._below[:-1]:
                stack.enter_context(returning(module, None, self._tuples))
            if self._below:
                stack.enter_context(returning(self._below[-1], self._hidden, self._tuples))
            places = self.rows.rows, self.rows.positions
            return wide(logits_at(self.view.model, self.inputs, places))

    def nll(self) -> Float[Tensor, " a"]:
        """Return the negative log-likelihood of every answer token, in nats, row after row."""
        return torch.nn.functional.cross_entropy(self.logits(), self.rows.targets, reduction="none")
