"""Teacher forcing: argmax token and loss at each token of given answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.functional.scores import token_scores
from lightning_edit.inference.answer_pass import (
    ForwardPass,
    Ids,
    PassBackend,
    PassObserver,
    ReadRow,
    run_pass,
    unobserved,
)
from lightning_edit.inference.encoded_prompts import EncodedPrompts
from lightning_edit.inference.packed.backend import NotPackableError
from lightning_edit.inference.pass_backends import PaddedRows
from lightning_edit.inference.pass_layout import PassLayout

AnswerRow = tuple[Ids, Ids]
"""Token ids of a prompt (all that precedes the answer) and of its answer."""


@dataclass(frozen=True)
class ForcedAnswer:
    """Argmax tokens and losses along an answer; ``chosen`` adds argmax tokens read beyond it.

    Args:
        best: The most probable token at each of the answer's positions.
        nlls: Negative log-probability of each of its tokens, in nats.
        chosen: ``best``, and the most probable tokens after the answer.
    """

    best: Ids
    nlls: tuple[float, ...]
    chosen: Ids


class TeacherForcing:
    """Teacher-forced scoring of given answers with one language model.

    Args:
        model: A Hugging Face language model in evaluation mode, decoder-only or encoder-decoder.
        batch_size: Rows per forward pass.
        layout: What texts share, see :class:`~lightning_edit.inference.pass_layout.PassLayout`;
            ``None``: chosen here from the model's present state.
        backend: How rows are laid out, in place of the layout's.
        observer: Told before each pass where its prompts end.
        ranks: The processes that score together; each takes whole passes.
        encoded: Prompts that are shared with other calls, in the layout ``encoded_once``.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_size: int,
        layout: PassLayout | None = None,
        backend: PassBackend | None = None,
        observer: PassObserver = unobserved,
        ranks: OneProcess = ALONE,
        encoded: EncodedPrompts | None = None,
    ) -> None:
        self.model: Any = model
        self.encoded = encoded
        self.ranks = ranks
        self.batch_size = batch_size
        self.layout = PassLayout.choose(model) if layout is None else layout
        self.backend = backend
        self.observer = observer

    def __call__(
        self, rows: Iterable[AnswerRow], ahead: Mapping[AnswerRow, Ids]
    ) -> dict[AnswerRow, ForcedAnswer]:
        """Return argmax tokens and losses along each row's teacher-forced answer.

        Args:
            rows: Prompts and answers, each once.
            ahead: Guessed next tokens of rows that are read beyond their answer too.

        Raises:
            PassLayoutError: If the model can no longer run in the layout that was chosen for it.
        """
        rows = sorted(rows)
        if self.backend is not None:
            return self._run(rows, ahead, self.backend)
        self.layout.require(self.model)
        try:
            return self._run(rows, ahead, self.layout.backend(self.model, self.encoded))
        except NotPackableError:
            # Only a run shows it: a window shorter than these texts, a bias, a soft cap. The same
            # rows show it again in any process.
            return self._run(rows, ahead, PaddedRows())

    def _run(
        self, rows: Sequence[AnswerRow], ahead: Mapping[AnswerRow, Ids], backend: PassBackend
    ) -> dict[AnswerRow, ForcedAnswer]:
        read = [_read_row(row, ahead) for row in rows]

        def force(one: ForwardPass) -> dict[AnswerRow, ForcedAnswer]:
            outcome = {}
            logits = run_pass(self.model, one, self.observer)
            batch = [rows[number] for number in one.rows]
            # After an answer there is no target; token 0 is a placeholder whose loss is dropped.
            tokens = [(*row[1], *ahead[row], 0) if row in ahead else row[1] for row in batch]
            targets = torch.tensor([token for answer in tokens for token in answer])
            nll, best = token_scores(logits, targets.to(logits.device))
            all_nll, all_best = iter(nll.tolist()), iter(best.tolist())
            for row, answer in zip(batch, tokens, strict=True):
                size = len(answer)
                chosen, nlls = tuple(islice(all_best, size)), tuple(islice(all_nll, size))
                outcome[row] = ForcedAnswer(chosen[: len(row[1])], nlls[: len(row[1])], chosen)
            return outcome

        passes = backend.passes(self.model, read, self.batch_size)
        parts = self.ranks.deal(passes, force)
        return {row: found for part in parts for row, found in part.items()}


def _read_row(row: AnswerRow, ahead: Mapping[AnswerRow, Ids]) -> ReadRow:
    """Return what is fed of a row; its answer's last token only to read beyond it."""
    context, answer = row
    return ReadRow(context, (*answer, *ahead[row]) if row in ahead else answer[:-1])
