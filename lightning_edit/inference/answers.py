"""Answer logits and gradient factors of language models under teacher forcing.

With two stacks the encoder reads the prompt, and the decoder its start tokens and the answer.

Axis names: ``b`` -- rows (a prompt with its answer); ``t`` -- positions; ``a`` -- answer tokens of
all rows, row after row; ``v`` -- vocabulary; ``d_in``/``d_out`` -- width of a layer's input and
output.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.functional.padding import pad
from lightning_edit.functional.scores import token_scores
from lightning_edit.inference.answer_pass import logits_at, wide
from lightning_edit.inference.hooks import hooked, record_factors
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


def answer_logits(
    model: nn.Module,
    batch: AnswerRows,
    parameters: Mapping[str, Tensor] | None = None,
    rows_per_pass: int | None = None,
) -> Float[Tensor, "a v"]:
    """Return the logits that predict the answer tokens, from a teacher-forced pass.

    Args:
        model: A Hugging Face language model.
        batch: Rows on the model's device, made for this model (:meth:`AnswerRows.of`).
        parameters: Values that replace the model's parameters, by name. Gradients then flow to them
            only: the model's own parameters are constants.
        rows_per_pass: Gradient checkpointing: most rows of a pass. Activations of one pass at a
            time are in memory; the backward pass computes them again. ``None``: one or two passes
            whose activations are kept.
    """
    values = _parameter_values(model, parameters) if parameters else {}
    parts, run = _split(batch, rows_per_pass)
    return _restore_order(
        [run(partial(_logits, model, rows, values)) for rows, _, _ in parts],
        [answers for *_, answers in parts],
    )


_Pass = Callable[[], Tensor]


def _split(
    batch: AnswerRows, rows_per_pass: int | None
) -> tuple[list[tuple[AnswerRows, Tensor, Tensor]], Callable[[_Pass], Tensor]]:
    """Return passes of a batch, and how each is run."""
    if rows_per_pass is None:
        return batch.buckets(), lambda one: one()
    return batch.passes(rows_per_pass), _recomputed


def _recomputed(one: _Pass) -> Tensor:
    """Run a pass whose activations are not kept but computed again in the backward pass."""
    # The whole pass is repeated, hooks and replaced parameters included, which would be gone by
    # then if blocks were repeated. It must end in order, since contexts close behind it.
    with set_checkpoint_early_stop(False):
        logits: Tensor = checkpoint(one, use_reentrant=False, preserve_rng_state=False)
    return logits


def _parameter_values(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()} | dict(parameters)


def _restore_order(parts: Sequence[Tensor], numbers: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(parts))[torch.cat(tuple(numbers)).argsort()]


def _logits(
    model: nn.Module, batch: AnswerRows, values: Mapping[str, Tensor]
) -> Float[Tensor, "a v"]:
    with telling(model, batch.prompt_ends):
        return logits_at(model, batch.inputs, (batch.rows, batch.positions), values)


def answer_logits_each(
    model: nn.Module,
    batch: AnswerRows,
    changes: Mapping[str, tuple[Float[Tensor, "e d_out r"], Float[Tensor, "e r d_in"]]],
    edits: Int[Tensor, " b"],
    rows_per_pass: int | None = None,
) -> Float[Tensor, "a v"]:
    """Return the answer tokens' logits, with a separate low-rank update for each row.

    Args:
        model: A Hugging Face language model.
        batch: Rows on the model's device.
        changes: Low-rank factors of ``e`` alternative updates, by dotted name of the linear layer;
            gradients flow to them only.
        edits: Index of the update that applies to each row.
        rows_per_pass: Gradient checkpointing, see :func:`answer_logits`.
    """
    values = _parameter_values(model, {})
    parts, run = _split(batch, rows_per_pass)
    return _restore_order(
        [
            run(partial(_changed, model, rows, values, changes, edits[part]))
            for rows, part, _ in parts
        ],
        [answers for *_, answers in parts],
    )


def _changed(
    model: nn.Module,
    rows: AnswerRows,
    values: Mapping[str, Tensor],
    changes: Mapping[str, tuple[Tensor, Tensor]],
    edits: Tensor,
) -> Tensor:
    with ExitStack() as stack:
        for name, (left, right) in changes.items():
            hook = partial(_add_change, left[edits], right[edits], rows.ids.shape)
            stack.enter_context(hooked(model.get_submodule(name), after=hook))
        return _logits(model, rows, values)


def _add_change(
    left: Tensor,
    right: Tensor,
    shape: torch.Size,
    layer: nn.Module,
    args: tuple[Any, ...],
    output: Tensor,
) -> Tensor:
    # OPT flattens rows and positions to one axis before its MLP.
    hidden = args[0] if args[0].dim() == 3 else args[0].view(*shape, -1)
    inputs = hidden.to(right.dtype)
    change = inputs @ right.mT @ left.mT
    edited: Tensor = output + change.view(output.shape).to(output.dtype)
    return edited


def token_factors(
    model: nn.Module,
    rows: Sequence[AnswerRow],
    modules: Sequence[str],
    device: torch.device | str = "cpu",
    each: bool = False,
    parameters: Mapping[str, Tensor] | None = None,
    rows_per_pass: int | None = None,
) -> tuple[float, dict[str, tuple[Float[Tensor, "b t d_in"], Float[Tensor, "b t d_out"]]]]:
    r"""Return the answers' loss and, per layer, its gradient factors at every token.

    The gradient of the mean negative log-likelihood with respect to a layer's weight is
    :math:`\sum_i \delta_i u_i^\top` with :math:`u_i` the layer's input and :math:`\delta_i` the
    gradient at its output. Works inside ``torch.no_grad`` and ``torch.inference_mode`` and with
    frozen weights: a zero tensor that requires a gradient is added to every output, so no weight
    has to.

    Args:
        model: A Hugging Face language model.
        rows: Token ids of prompts and answers, none of them empty.
        modules: Dotted names of linear layers, with two stacks of either.
        device: Device of the model's inputs.
        each: Take the gradient of each row's own mean loss, as in a batch of one, instead of the
            mean over the answer tokens of all rows.
        parameters: Values that replace the model's parameters, by name.
        rows_per_pass: Most rows of a pass, to bound memory; ``None``: all.

    Returns:
        The mean loss in nats, and by module name inputs and output gradients of every position
        (padding included), detached.
    """
    answers = sum(len(answer) for _, answer in rows)
    size = rows_per_pass or len(rows)
    found = [
        _factors(model, rows[first : first + size], modules, device, each, parameters, answers)
        for first in range(0, len(rows), size)
    ]
    loss = sum(nll.sum().item() for nll, _ in found) / answers
    if len(found) == 1:
        return found[0][0].mean().item(), found[0][1]
    return loss, {
        name: (
            _joined([part[name][0] for _, part in found]),
            _joined([part[name][1] for _, part in found]),
        )
        for name in modules
    }


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Join tensors of rows whose second axis is padded to different widths."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(p, (0, 0, 0, width - p.shape[1])) for p in parts])


def _factors(
    model: nn.Module,
    rows: Sequence[AnswerRow],
    modules: Sequence[str],
    device: torch.device | str,
    each: bool,
    parameters: Mapping[str, Tensor] | None,
    answers: int,
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Return the loss of each answer token of a pass, and the factors of its gradient."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        record_factors(model, modules) as (captured, zeros),
    ):
        batch = AnswerRows.of(model, rows, device)
        logits = wide(_logits(model, batch, parameters or {}))
        nll = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        loss = batch.per_row(nll).sum() if each else nll.mean() * (len(nll) / answers)
        gradients = torch.autograd.grad(loss, [zeros[name] for name in modules])
    return nll.detach(), {
        name: (captured[name].detach(), gradient)
        for name, gradient in zip(modules, gradients, strict=True)
    }
