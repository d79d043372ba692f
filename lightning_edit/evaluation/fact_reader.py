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
from lightning_edit.functional.padding import pad, prediction_places
from lightning_edit.functional.ripple import token_ranks
from lightning_edit.functional.scores import token_scores
from lightning_edit.functional.tokens import encode_pair, length_sorted, subject_last_index
from lightning_edit.inference.hooks import capture, select_head_positions
from lightning_edit.models.view import resolve
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
        tokenizer: Its fast tokenizer.
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
        self.tokenizer = tokenizer
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
        lengths = [len(row.context) + len(row.answer) for row in rows]
        outcomes: dict[int, FactOutcome] = {}
        vectors: dict[int, Tensor] = {}
        with evaluating(self.model):
            for numbers in length_sorted(lengths, self.batch_size):
                batch = [rows[number] for number in numbers]
                seen: dict[str, Tensor] = {}
                if hidden:
                    with capture(self.model, {self._hooked_module: self._hooked_side}) as seen:
                        found = self._forward(batch)
                    taken = self._representations(batch, seen[self._hooked_module])
                    vectors |= dict(zip(numbers, taken, strict=True))
                else:
                    found = self._forward(batch)
                outcomes |= dict(zip(numbers, found, strict=True))
        in_order = range(len(rows))
        return [outcomes[n] for n in in_order], [vectors[n] for n in in_order if hidden]

    def _encode_fact(self, fact: Fact) -> _FactRow:
        try:
            context, answer = encode_pair(self.tokenizer, fact.prompt, fact.answers[0])
            end = fact.subject_end
            last = None if end is None else subject_last_index(self.tokenizer, fact.prompt, end)
        except ValueError as error:
            raise DataError(f"fact {fact.prompt!r}: {error}") from error
        room = getattr(self.model.config, "max_position_embeddings", None)
        if not context or (room is not None and len(context) + len(answer) > room):
            raise DataError(
                f"fact {fact.prompt[:60]!r}: {len(context)} tokens of prompt and {len(answer)} of "
                f"answer, but the model takes {room} and needs a prompt; change the prompt"
            )
        # A subject that is not in the prompt has no last token; the prompt's is used instead.
        place = len(context) - 1 if last is None else min(last, len(context) - 1)
        return _FactRow(tuple(context), tuple(answer), place)

    def _forward(self, batch: Sequence[_FactRow]) -> list[FactOutcome]:
        device = self.model.get_input_embeddings().weight.device
        ids, mask = pad([(*row.context, *row.answer[:-1]) for row in batch])
        sizes = [len(row.answer) for row in batch]
        places = prediction_places([len(row.context) for row in batch], sizes)
        index = (places[0].to(device), places[1].to(device))
        with select_head_positions(self.model, index):
            logits = self.model(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
            ).logits.squeeze(1)
        targets = torch.tensor([token for row in batch for token in row.answer])
        targets = targets.to(logits.device)
        nlls = iter(token_scores(logits, targets)[0].tolist())
        ranks = iter(token_ranks(logits, targets).tolist())
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
