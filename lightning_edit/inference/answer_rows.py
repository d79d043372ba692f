"""Batches of prompts with their answers, and which positions predict the answers' tokens.

With two stacks the encoder reads the prompt, and the decoder its start tokens and the answer.

Axis names: ``b`` -- rows (a prompt with its answer); ``t`` -- positions; ``a`` -- answer tokens of
all rows, row after row; ``s`` -- positions of the encoder; ``d`` -- its width; ``v`` -- vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.functional.padding import pad
from lightning_edit.functional.scores import token_scores
from lightning_edit.inference.model_call import telling

AnswerRow = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its answer."""


@dataclass(frozen=True)
class AnswerRows:
    """Right-padded batch of prompts and answers, with the positions that predict answer tokens.

    Args:
        ids: Input tokens, with two stacks the decoder's; an answer's last token predicts nothing
            and is left out.
        mask: True where a row has a token.
        rows: Row index of each answer token.
        positions: Position that predicts it.
        targets: The answer token.
        encoder: Input tokens of the encoder and their mask; ``None``: there is one stack.
        encoded: What the encoder makes of them, where it is known; it does not run then.
    """

    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    rows: Int[Tensor, " a"]
    positions: Int[Tensor, " a"]
    targets: Int[Tensor, " a"]
    encoder: tuple[Int[Tensor, "b s"], Bool[Tensor, "b s"]] | None = None
    encoded: Float[Tensor, "b s d"] | None = None

    @classmethod
    def of(
        cls, model: nn.Module, rows: Sequence[AnswerRow], device: torch.device | str | None = None
    ) -> "AnswerRows":
        """Pad prompts and answers on the right into one batch for a model.

        Args:
            model: The language model, of one stack or two.
            rows: Token ids of prompts and answers, see :meth:`pad`.
            device: Device of the tensors; ``None``: that of the model's token embeddings.

        Raises:
            ValueError: If there is no row, or a prompt has no token.
        """
        whole: Any = model
        if device is None:
            device = whole.get_input_embeddings().weight.device
        if not whole.config.is_encoder_decoder:
            return cls.pad(rows, device)
        begin = start_tokens(model)
        padded = cls.pad([(begin, answer) for _, answer in rows], device)
        if any(not prompt for prompt, _ in rows):
            raise ValueError(
                "every row needs a prompt of at least one token to predict its answer from; "
                "put text before the answer"
            )
        ids, mask = pad([tuple(prompt) for prompt, _ in rows])
        return replace(padded, encoder=(ids.to(device), mask.to(device).bool()))

    @classmethod
    def pad(cls, rows: Sequence[AnswerRow], device: torch.device | str = "cpu") -> "AnswerRows":
        """Pad prompts and answers of one stack on the right into one batch.

        Args:
            rows: Token ids of prompts and answers. An empty answer stands for the one position
                after the prompt, with -100 as its target.
            device: Device of the tensors.

        Raises:
            ValueError: If there is no row, or a prompt has no token.
        """
        if not rows or any(not prompt for prompt, _ in rows):
            raise ValueError(
                "every row needs a prompt of at least one token to predict its answer from; "
                "put text before the answer"
            )
        inputs = [[*prompt, *answer[:-1]] for prompt, answer in rows]
        width = max(map(len, inputs))
        ids = torch.tensor([line + [0] * (width - len(line)) for line in inputs], device=device)
        lengths = torch.tensor([len(line) for line in inputs], device=device)
        predictions = [
            (row, len(prompt) - 1 + offset, token)
            for row, (prompt, answer) in enumerate(rows)
            for offset, token in enumerate(answer or (-100,))
        ]
        row, position, token = torch.tensor(predictions, device=device).unbind(1)
        mask = torch.arange(width, device=device) < lengths[:, None]
        return cls(ids, mask, row, position, token)

    @torch.no_grad()
    def encode_prompts(self, model: nn.Module) -> "AnswerRows":
        """Run the encoder once, for many passes of the decoder; one stack has nothing to run.

        Args:
            model: The language model of these rows, in evaluation mode. Nothing that changes
                between the passes may act in its encoder.

        Returns:
            The rows with the encoder's states.
        """
        if self.encoder is None:
            return self
        ids, mask = self.encoder
        whole: Any = model
        with telling(model, self.prompt_ends):
            states = whole.get_encoder()(input_ids=ids, attention_mask=mask.long())
        return replace(self, encoded=states.last_hidden_state)

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments of the model, by name: tensors, and a tuple of one for ``encoder_outputs``."""
        if self.encoder is None:
            return {"input_ids": self.ids, "attention_mask": self.mask.long()}
        ids, mask = self.encoder
        read = {"input_ids": ids} if self.encoded is None else {"encoder_outputs": (self.encoded,)}
        return {
            **read,
            "attention_mask": mask.long(),
            "decoder_input_ids": self.ids,
            "decoder_attention_mask": self.mask.long(),
        }

    @property
    def prompt_ends(self) -> list[int]:
        """Position of the last token of each row's prompt, with two stacks in the encoder."""
        if self.encoder is not None:
            sizes: list[int] = self.encoder[1].sum(1).tolist()
            return [size - 1 for size in sizes]
        ends = self.positions.new_full((self.ids.shape[0],), self.ids.shape[1])
        found: list[int] = ends.scatter_reduce(0, self.rows, self.positions, "amin").tolist()
        return found

    def buckets(self) -> list[tuple["AnswerRows", Int[Tensor, " b2"], Int[Tensor, " a2"]]]:
        """Bucket rows by length: split off short ones if that saves at least 1/4 of the positions.

        Returns:
            One or two batches, each with the indices of its rows and of its answer tokens.
        """
        lengths, order = self.mask.sum(1).sort()
        count, width = self.ids.shape
        if self.encoder is not None:  # answers are short; the prompts' lengths would decide
            whole = torch.arange(count, device=lengths.device)
            return [(self, whole, torch.arange(len(self.rows), device=lengths.device))]
        # Cost of a split after each row: short rows at their own width, long ones at full width.
        cuts = torch.arange(1, count + 1, device=lengths.device)
        cost = cuts * lengths + (count - cuts) * width
        best = int(cost.argmin())
        if float(cost[best]) > 0.75 * count * width:
            return [(self, order.sort().values, torch.arange(len(self.rows), device=order.device))]
        return [self._take(part) for part in (order[: best + 1], order[best + 1 :])]

    def passes(
        self, rows: int
    ) -> list[tuple["AnswerRows", Int[Tensor, " b2"], Int[Tensor, " a2"]]]:
        """Split into passes of rows of similar length.

        Args:
            rows: Most rows in a pass.

        Returns:
            Batches, each with the indices of its rows and of its answer tokens.
        """
        mask = self.mask if self.encoder is None else self.encoder[1]
        starts = list(range(rows, len(self.ids), rows))
        order = mask.sum(1).argsort(stable=True)
        return [self._take(part) for part in order.tensor_split(starts)]

    def _take(
        self, part: Int[Tensor, " b2"]
    ) -> tuple["AnswerRows", Int[Tensor, " b2"], Int[Tensor, " a2"]]:
        place = torch.full((len(self.ids),), -1, device=part.device)
        place[part] = torch.arange(len(part), device=part.device)
        answers = (place[self.rows] >= 0).nonzero().squeeze(1)
        longest = int(self.mask[part].sum(1).max())
        rows = AnswerRows(
            self.ids[part, :longest],
            self.mask[part, :longest],
            place[self.rows[answers]],
            self.positions[answers],
            self.targets[answers],
        )
        if self.encoder is not None:
            ids, mask = self.encoder
            read = int(mask[part].sum(1).max())
            rows = replace(rows, encoder=(ids[part, :read], mask[part, :read]))
            if self.encoded is not None:
                rows = replace(rows, encoded=self.encoded[part, :read])
        return rows, part, answers

    def verdicts(self, logits: Float[Tensor, "a v"]) -> "RowVerdicts":
        """Score each row's answer under teacher forcing.

        Args:
            logits: Logits at its answer tokens, of :func:`answer_logits`.
        """
        nll, best = token_scores(logits, self.targets)
        right = self.per_row((best == self.targets).float()) == 1
        return RowVerdicts(self.per_row(nll), right, best)

    def per_row(self, values: Float[Tensor, " a"]) -> Float[Tensor, " b"]:
        """Average per-token values over each row's answer tokens."""
        sums = values.new_zeros(self.ids.shape[0]).index_add(0, self.rows, values)
        return sums / values.new_zeros(sums.shape[0]).index_add(
            0, self.rows, torch.ones_like(values)
        )

    def least_per_row(self, values: Float[Tensor, " a"]) -> Float[Tensor, " b"]:
        """Return the smallest per-token value of each row's answer; NaN where one is.

        Args:
            values: A value of each answer token.
        """
        start = values.new_full((self.ids.shape[0],), float("inf"))
        return start.scatter_reduce(0, self.rows, values, "amin")


@dataclass(frozen=True)
class RowVerdicts:
    """Teacher-forced verdicts of rows.

    Args:
        nll: Mean negative log-likelihood of each row's answer, in nats.
        right: Whether every token of the answer is the most probable one.
        best: The most probable token at each answer position, of all rows.
    """

    nll: Float[Tensor, " b"]
    right: Bool[Tensor, " b"]
    best: Int[Tensor, " a"]


def start_tokens(model: Any) -> list[int]:
    """Return the tokens that a decoder reads before an answer, with two stacks.

    They are those that `generate` writes first: the generation settings decide, then the config.

    Args:
        model: An encoder-decoder model.

    Raises:
        ArchitectureError: If neither names a token to start with.
    """
    settings = model.generation_config
    named = (
        settings.decoder_start_token_id,
        getattr(model.config, "decoder_start_token_id", None),
        settings.bos_token_id,
    )
    first = next((token for token in named if token is not None), None)
    if first is None:
        raise ArchitectureError(
            f"{type(model).__name__} names no token that its decoder starts with; set "
            "model.generation_config.decoder_start_token_id (T5: the padding token's)"
        )
    forced = settings.forced_bos_token_id
    return [first] if forced is None else [first, forced]
