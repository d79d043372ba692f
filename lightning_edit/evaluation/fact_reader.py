"""Teacher-forced scoring of facts, with the hidden representation of each fact."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_edit.evaluation.neighbourhoods import FactOutcome
from lightning_edit.evaluation.scorer import evaluating
from lightning_edit.exceptions import ArchitectureError, DataError
from lightning_edit.functional.measures import mean
from lightning_edit.functional.ripple import key_overlap, token_ranks
from lightning_edit.functional.scores import token_scores
from lightning_edit.functional.solve import Preserved
from lightning_edit.inference.answer_pass import ReadRow, run_pass
from lightning_edit.inference.hooks import Side, capture
from lightning_edit.inference.pass_backends import PlainRows
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.models.view import resolve
from lightning_edit.statistics.cache import files_for, moments_in
from lightning_edit.types.facts import Fact

Representation = Literal["last_token", "subject_last", "mean", "key"]
REPRESENTATIONS: tuple[Representation, ...] = get_args(Representation)


@dataclass(frozen=True)
class _FactRow:
    context: tuple[int, ...]
    answer: tuple[int, ...]
    subject_last: int


class FactReader:
    """Teacher-forced fact scores and hidden representations from a decoder-only model.

    Args:
        model: A Hugging Face language model.
        tokenizer: Its fast tokenizer, or a prompt encoder.
        representation: Representation of a fact in hidden space. ``last_token``, ``subject_last``:
            block output at the prompt's or the subject's last token; ``mean``: its mean over the
            prompt; ``key``: input of the block's MLP down-projection at the subject's last token,
            the key that locate-then-edit methods write to.
        layer: Index of the block; ``None``: the middle one.
        batch_size: Facts per batch; no outcome depends on it.

    Raises:
        ValueError: On an unknown representation.
        ArchitectureError: If the model is no decoder or has no such block.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        representation: Representation = "subject_last",
        layer: int | None = None,
        batch_size: int = 64,
    ) -> None:
        if representation not in REPRESENTATIONS:
            raise ValueError(
                f"`representation` must be one of {', '.join(REPRESENTATIONS)}; "
                f"got {representation!r}"
            )
        view = resolve(model)
        if view.is_encoder_decoder:
            raise ArchitectureError(
                f"{type(model).__name__} is an encoder-decoder; facts are read from decoders only"
            )
        number = view.num_blocks // 2 if layer is None else layer
        self.model: Any = model
        self.prompts = PromptEncoder.for_model(model, tokenizer)
        self.representation = representation
        self.batch_size = batch_size
        key = representation == "key"
        self._hooked_module = view.down_projection(number) if key else view.block(number).name
        self._hooked_side: Literal["input", "output"] = "input" if key else "output"

    def outcomes(self, facts: Sequence[Fact]) -> list[FactOutcome]:
        """Score facts by teacher forcing.

        Args:
            facts: The facts.

        Returns:
            One outcome per fact, in order.

        Raises:
            DataError: If a prompt and its answer cannot be tokenised or do not fit into the model.
        """
        return self._read(facts, hidden=False)[0]

    def read(self, facts: Sequence[Fact]) -> tuple[list[FactOutcome], Tensor]:
        """Score facts and read their hidden representations in the same forward pass.

        Args:
            facts: At least one fact.

        Returns:
            One outcome per fact, and representations of shape (facts, width), float32 on the CPU.

        Raises:
            DataError: As :meth:`outcomes`.
        """
        outcomes, hidden = self._read(facts, hidden=True)
        return outcomes, torch.stack(hidden)

    def _read(self, facts: Sequence[Fact], hidden: bool) -> tuple[list[FactOutcome], list[Tensor]]:
        rows = [self._encode_fact(fact) for fact in facts]
        read = [ReadRow(row.context, row.answer[:-1]) for row in rows]
        outcomes: dict[int, FactOutcome] = {}
        vectors: dict[int, Tensor] = {}
        wanted: dict[str, Side] = {self._hooked_module: self._hooked_side} if hidden else {}
        # Plain rows: representations are read line by line.
        with evaluating(self.model):
            for one in PlainRows().passes(self.model, read, self.batch_size):
                batch = [rows[number] for number in one.rows]
                with capture(self.model, wanted) as seen:
                    found = self._outcomes(batch, run_pass(self.model, one))
                outcomes |= dict(zip(one.rows, found, strict=True))
                if hidden:
                    taken = self._representations(batch, seen[self._hooked_module])
                    vectors |= dict(zip(one.rows, taken, strict=True))
        in_order = range(len(rows))
        return [outcomes[n] for n in in_order], [vectors[n] for n in in_order if hidden]

    def _encode_fact(self, fact: Fact) -> _FactRow:
        end = fact.subject_end
        subject = None if end is None else (end - len(fact.subject_text or fact.subject), end)
        try:
            (text,) = self.prompts.encode([PromptText(fact.prompt, fact.answers[0], subject)])
        except ValueError as error:
            raise DataError(f"fact {fact.prompt!r}: {error}") from error
        # A subject that is not in the prompt has no last token; the prompt's is used instead.
        last = len(text.prompt) - 1 if text.subject_last is None else text.subject_last
        return _FactRow(text.prompt, text.answer, last)

    def _outcomes(self, batch: Sequence[_FactRow], logits: Tensor) -> list[FactOutcome]:
        targets = torch.tensor([token for row in batch for token in row.answer])
        targets = targets.to(logits.device)
        nlls = iter(token_scores(logits, targets)[0].tolist())
        ranks = iter(token_ranks(logits, targets).tolist())
        sizes = [len(row.answer) for row in batch]
        return [
            FactOutcome(mean(list(islice(nlls, size))), max(islice(ranks, size))) for size in sizes
        ]

    def _representations(self, batch: Sequence[_FactRow], states: Tensor) -> list[Tensor]:
        states = states.float().cpu()
        if self.representation == "mean":
            return [state[: len(r.context)].mean(0) for r, state in zip(batch, states, strict=True)]
        last = self.representation == "last_token"
        return [
            state[len(row.context) - 1 if last else row.subject_last].clone()
            for row, state in zip(batch, states, strict=True)
        ]


def key_overlaps(
    model: nn.Module, tokenizer: Any, layer: int, edits: Tensor, facts: Tensor, statistics: str
) -> Tensor:
    """Return the key overlaps of edits and facts in one block, (edits, facts), in float32.

    Args:
        model: The unedited language model.
        tokenizer: Its tokenizer, or a prompt encoder.
        layer: Number of the block.
        edits: Keys of the edits, one a row.
        facts: Keys of the facts, one a row.
        statistics: Second moments of keys: ``auto``, ``identity`` or a file.

    Raises:
        StatisticsNotFoundError: If they have not been collected.
    """
    view = resolve(model)
    moment = moments_in(files_for(model, tokenizer, [layer], statistics), view, [layer])[layer]
    # Without a moment the identity stands for it, as in the editors.
    placed = None if moment is None else moment.cpu()
    ridge = 1.0 if moment is None else 0.0
    preserved = Preserved.of(placed, ridge=ridge, where=view.parameter(layer))
    return key_overlap(edits.double(), facts.double(), preserved).float()
