"""Teacher forcing: argmax token and loss at each token of given answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.functional.measures import NLL_CAP
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
from lightning_edit.inference.pass_backends import PaddedRows, passes_apart
from lightning_edit.inference.pass_layout import PassLayout

AnswerRow = tuple[Ids, Ids]
"""Token ids of a prompt (all that precedes the answer) and of its answer."""
ScoredTokens = tuple[Ids, tuple[float, ...]]
"""The most probable token at each place that is read, and the loss of its target in nats."""


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
        # After an answer there is no target; token 0 is a placeholder whose loss is dropped.
        targets = [(*row[1], *ahead[row], 0) if row in ahead else row[1] for row in rows]
        found = score_rows(
            self.model, read, targets, backend, self.batch_size, self.observer, self.ranks
        )
        return {
            row: ForcedAnswer(chosen[: len(row[1])], nlls[: len(row[1])], chosen)
            for row, (chosen, nlls) in zip(rows, found, strict=True)
        }


def score_rows(
    model: Any,
    rows: Sequence[ReadRow],
    targets: Sequence[Ids],
    backend: PassBackend,
    batch_size: int,
    observer: PassObserver = unobserved,
    ranks: OneProcess = ALONE,
) -> list[ScoredTokens]:
    """Score the tokens that rows predict; each row's scores are those that it has by itself.

    Where the model's outputs for a row are not finite, the row is read again apart from the others
    of its pass: another row may have broken it.

    Args:
        model: A Hugging Face language model in evaluation mode.
        rows: The rows.
        targets: Tokens that each row is to predict, one a prediction.
        backend: How rows are laid out.
        batch_size: Rows per forward pass.
        observer: Told before each pass where its prompts end.
        ranks: The processes that score together; each takes whole passes.

    Returns:
        The most probable tokens of each row, and the losses of its targets in nats.
    """

    def force(one: ForwardPass) -> dict[int, ScoredTokens]:
        found, broken = _score_pass(model, one, targets, observer)
        if broken and (len(one.rows) > 1 or backend.shares_prefixes):
            again = [rows[number] for number in broken]
            wanted = [targets[number] for number in broken]
            for part in passes_apart(model, again, batch_size, backend):
                apart, _ = _score_pass(model, part, wanted, observer)
                found |= {broken[place]: scored for place, scored in apart.items()}
        return found

    parts = ranks.deal(backend.passes(model, rows, batch_size), force)
    scores = {number: scored for part in parts for number, scored in part.items()}
    return [scores[number] for number in range(len(rows))]


def _score_pass(
    model: Any, one: ForwardPass, targets: Sequence[Ids], observer: PassObserver
) -> tuple[dict[int, ScoredTokens], list[int]]:
    """Return the scores of a pass's rows, and the rows whose outputs are not finite."""
    logits = run_pass(model, one, observer)
    # Token ids must not pass through the logits' own type: bfloat16 rounds above 256.
    flat = torch.tensor([token for row in one.rows for token in targets[row]])
    nll, best = token_scores(logits, flat.to(logits.device))
    nlls, chosen = nll.tolist(), best.tolist()
    ends = list(accumulate(len(targets[row]) for row in one.rows))
    spans = {
        row: slice(end - len(targets[row]), end) for row, end in zip(one.rows, ends, strict=True)
    }
    found = {row: (tuple(chosen[span]), tuple(nlls[span])) for row, span in spans.items()}
    # The losses are here anyway. Only where one is at the cap does a look at the logits tell what
    # is broken from what is impossible.
    if max(nlls, default=0.0) < NLL_CAP:
        return found, []
    finite = logits.float().logsumexp(-1).isfinite().tolist()
    return found, [row for row, span in spans.items() if not all(finite[span])]


def _read_row(row: AnswerRow, ahead: Mapping[AnswerRow, Ids]) -> ReadRow:
    """Return what is fed of a row; its answer's last token only to read beyond it."""
    context, answer = row
    return ReadRow(context, (*answer, *ahead[row]) if row in ahead else answer[:-1])
