"""UltraEdit: Gu et al., Training-, Subject-, and Memory-Free Lifelong Editing in Language Models.

TMLR 2026, arXiv 2505.14679. Axis names: ``n`` -- answer tokens of all edits of a batch;
``d_in``/``d_out`` -- width of an edited layer's input and output; ``w`` -- their sum.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from math import inf
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.edits.columns import LEFT_OUT
from lightning_edit.edits.delta import Delta, LowRank, WeightUpdate
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.edits.running_sums import RunningSums
from lightning_edit.functional.leave_one_out import left_out_columns
from lightning_edit.functional.normalise import (
    Variance,
    first_order_drop,
    scale_alone,
    standardise,
    sums,
    value_shifts,
)
from lightning_edit.functional.solve import Preserved, Solution, least_squares
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.answer_gradients import answer_factors
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.models.view import ModelView
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch, Encoded

#: ``eta="auto"`` tries updates that lower the loss, to first order, by these times its value: less
#: than half of it arrives, since softmax flattens as an answer gets likely. Answers of several
#: tokens and chat models need the last ones.
REACHES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.5, 8.0, 10.0, 13.0, 16.0)


class UltraEdit(Editor):
    r"""Lifelong editing with one backward pass per edit; no subject, no training, no corpus.

    Keys k and gradients g at the answer tokens are standardised with running statistics over the
    whole sequence of edits; :math:`v = -\eta \|\hat k\|^2 \hat g` is written at the raw keys by
    ridge regression, :math:`\Delta^\top = (K^\top K + I)^{-1} K^\top V`.

    Args:
        layers: Blocks to edit; ``None``: by depth, see ``default_layers``.
        projection: ``down``: the MLP's down-projections; ``up``: its input projections, gate
            included.
        modules: Dotted names of linear layers to edit, in place of ``layers``.
        eta: η, `lr` in the authors' configs (1e-6). ‖k̂‖² is about the width of a key, so a
            narrower model needs a larger η. ``auto`` chooses one for each request of a batch: all
            begin with the step that lowers the batch's loss, to first order, by the first of
            :data:`REACHES` times its value, and those whose answer is not the likeliest go on to
            the next, until all are. Each such round costs a forward pass.
        batch_size: Mini-batch size for averaging the loss, sorted by length (10 in the authors'
            configs).
        variance: ``exact``, or ``as_code``: the authors' update counts n·s² for a mini-batch's
            squared deviations, which overstates the variance.
        warmup: Answer tokens that the running statistics must cover before they are used; until
            then each key and gradient is divided by its own root mean square and not centred. 2:
            at once, as in the authors' code, whose first batch has a hundred edits.
        rows_per_pass: Most edits per backward pass; bounds memory, changes no result.

    Note:
        Layers of one shape share their statistics, as in the authors' code. There a mini-batch
        with one answer token makes the statistics NaN and the rest of an incomplete mini-batch is
        dropped; here neither happens. With few tokens, the mean holds what they have in common, and
        centring removes it: of 20 single edits of the embedded model 6 succeeded without
        ``warmup`` and 20 with it. A batch is written in one step at raw keys, which ordinary text
        shares, so neighbours pay for it: docs/settings.md has figures.
    """

    both_forms: ClassVar[bool] = True

    def __init__(
        self,
        layers: list[int] | None = None,
        projection: Literal["down", "up"] = "down",
        modules: list[str] | None = None,
        eta: float | Literal["auto"] = "auto",
        batch_size: int = 10,
        variance: Variance = "exact",
        warmup: int = 20,
        rows_per_pass: int = 64,
    ) -> None:
        super().__init__()
        if modules is not None and layers is not None:
            raise ValueError(
                f"UltraEdit edits `modules` in place of `layers`, got layers={layers} and "
                f"modules={modules}; give one of the two"
            )
        if (
            min(batch_size, rows_per_pass) < 1
            or (eta != "auto" and not 0 < eta < inf)
            or warmup < 2
        ):
            raise ValueError(
                "UltraEdit needs batch_size >= 1, rows_per_pass >= 1, eta auto or finite > 0, and "
                "warmup >= 2, got "
                f"batch_size={batch_size}, rows_per_pass={rows_per_pass}, eta={eta}, "
                f"warmup={warmup}"
            )
        self.layers = layers
        self.projection = projection
        self.modules_to_edit = modules
        self.eta: float | Literal["auto"] = eta
        self.batch_size = batch_size
        self.variance: Variance = variance
        self.warmup = warmup
        self.rows_per_pass = rows_per_pass
        self._names: list[str] = []
        self.seen = RunningSums(_running_addends)

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layers: last quarter, less a deep model's last (published: phi-4)."""
        top = num_blocks - 1
        return list(range(round(0.75 * top), round(0.97 * top) + 1))

    def on_bind(self) -> None:
        """Resolve the edited linear layers and reset the running statistics."""
        if self.modules_to_edit is not None:
            self._names = list(self.modules_to_edit)
        else:
            given = self.layers
            listed = self.default_layers(self.view.num_blocks) if given is None else sorted(given)
            blocks = [self.view.block(layer) for layer in listed]
            pairs = [(b.mlp_down,) if self.projection == "down" else b.mlp_up for b in blocks]
            self._names = [name for names in pairs for name in names]
        self.seen = RunningSums(_running_addends)

    def _sums_name(self, name: str) -> str:
        """Return the name of the running sums for a layer's shape."""
        d_out, d_in = weight(self.language_model, f"{name}.weight").shape
        return f"seen_{d_in}x{d_out}"

    # ------------------------------------------------------------------------------------ history

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Keep the running sums of the batches in force."""
        self.seen.follow(in_force, change)

    def renamed_arguments(self) -> dict[str, Any]:
        """Return the argument ``modules``, whose name an ``nn.Module`` has taken."""
        return {"modules": self.modules_to_edit}

    def get_extra_state(self) -> dict[str, Tensor]:
        """Save the running sums in checkpoints."""
        return self.seen.state()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore the running sums from a checkpoint."""
        self.seen.restore(state)

    # ------------------------------------------------------------------------------------ editing

    def edit(self, batch: EditBatch) -> Delta:
        """Compute the closed-form update of a batch from its gradients on the current model.

        Args:
            batch: The requests; they need no subject.

        Returns:
            Low-rank updates, and the batch's addends to the running sums.
        """
        with torch.inference_mode(False), torch.no_grad():
            rows_of = [row for encoded in batch.encoded for row in encoded.forms]
            owner_of = [n for n, encoded in enumerate(batch.encoded) for _ in encoded.forms]
            parts = _length_sorted_batches(rows_of, self.batch_size)
            mini_batches = [[rows_of[number] for number in part] for part in parts]
            ordered = [encoded for part in mini_batches for encoded in part]
            with self.stage("search"):
                loss, nll, tokens = self._keys_and_gradients(ordered)
            sizes = [sum(len(encoded.target_ids) for encoded in part) for part in mini_batches]
            ends = list(accumulate(sizes))[:-1]
            added: dict[str, Tensor] = {}
            rows: dict[str, Tensor] = {}
            for name, (keys, gradients) in tokens.items():
                # Per-token gradients of the mini-batch's mean loss.
                each = zip(keys.tensor_split(ends), gradients.tensor_split(ends), strict=True)
                listed = [torch.cat([k, g / len(g)], dim=1) for k, g in each]
                shape = self._sums_name(name)
                here = torch.stack([sums(piece, self.variance) for piece in listed]).sum(0)
                added[shape] = added[shape] + here if shape in added else here
                rows[name] = torch.cat(listed)
            unit = {
                name: self._solve(name, keys.shape[1], rows[name], added)
                for name, (keys, _) in tokens.items()
            }
            lengths = torch.tensor([len(encoded.target_ids) for encoded in ordered])

            def scaled(etas: Tensor) -> dict[str, Solution]:
                """Return what is written with an η of each request."""
                each = etas.repeat_interleave(lengths)
                return {
                    # With more tokens than outputs an update was solved for the whole matrix.
                    name: replace(one, left=one.left * each.to(one.left))
                    if one.left.shape[1] == len(each)
                    else self._solve(name, tokens[name][0].shape[1], rows[name], added, each)
                    for name, one in unit.items()
                }

            drop = self._drop(tokens, unit)
            if self.eta != "auto":
                etas = torch.full((len(ordered),), self.eta, dtype=torch.float64)
            elif drop > 0:
                etas = self._smallest_etas(ordered, scaled, float(nll.sum()) / drop)
            else:  # a batch without gradients has nothing to write, and no η would change that
                etas = torch.zeros(len(ordered), dtype=torch.float64)
            solved = scaled(etas)
            owners = tuple(
                owner_of[n] for part in parts for n in part for _ in rows_of[n].target_ids
            )
            weights = {name: f"{name}.weight" for name in solved}
            summed = [name for name, one in solved.items() if one.left.shape[1] == len(owners)]
            history = dict(added)
            for name in summed if len(batch) > 1 else ():
                one = solved[name]
                if one.gram_inverse is not None:
                    left_out = left_out_columns(one.left, one.gram_inverse, owners)
                    history[LEFT_OUT + weights[name]] = left_out.mT.float()
            updates = _updates(solved)
            promised = self._drop(tokens, solved) / len(ordered)
        columns = {weights[name]: owners for name in summed}
        if self.eta == "auto":
            self.chose({"eta": float(etas.mean())})
        info = {"loss": loss, "eta": float(etas.mean()), "first_order_drop": promised}
        return Delta(
            batch.ids, updates, history=history, info=info | self.chosen_info(), columns=columns
        )

    @staticmethod
    def _drop(tokens: Mapping[str, tuple[Tensor, Tensor]], solved: Mapping[str, Solution]) -> float:
        """Return what updates take from the batch's summed loss, to first order."""
        return sum(
            first_order_drop(*tokens[name], one.left, one.right) for name, one in solved.items()
        )

    def _solve(
        self,
        name: str,
        d_in: int,
        rows: Tensor,
        added: dict[str, Tensor],
        etas: Tensor | None = None,
    ) -> Solution:
        here = added[self._sums_name(name)]
        before = self.seen.get(self._sums_name(name))
        total = here if before is None else before.to(here.device) + here
        keys, gradients = rows[:, :d_in], rows[:, d_in:]
        if float(total[0, 0]) < self.warmup:
            shifts = value_shifts(scale_alone(keys), scale_alone(gradients), 1.0)
        else:
            scaled = standardise(rows, total, self._epsilon())
            shifts = value_shifts(scaled[:, :d_in], scaled[:, d_in:], 1.0)
        if etas is not None:
            shifts = shifts * etas[:, None].to(shifts)
        preserved = Preserved.of(ridge=1.0, where=name)
        with self.stage("solve"):
            return least_squares(keys.mT, shifts.mT, preserved)

    def _smallest_etas(
        self, ordered: list[Encoded], scaled: Callable[[Tensor], dict[str, Solution]], unit: float
    ) -> Tensor:
        """Return for each request the smallest η tried with which the answers are the likeliest.

        Args:
            ordered: The requests.
            scaled: Returns what is written with an η of each request.
            unit: The η whose update takes the loss once, to first order.

        Returns:
            Of the rounds the one with the most such answers, float64.
        """
        reaches = torch.tensor(REACHES, dtype=torch.float64)
        level = torch.zeros(len(ordered), dtype=torch.long)
        best, most = reaches[level] * unit, -1
        for _ in REACHES:
            etas = reaches[level] * unit
            with Delta((), _updates(scaled(etas))).applied(self.language_model):
                right = self._right(ordered)
            if int(right.sum()) > most:
                best, most = etas, int(right.sum())
            if most == len(ordered):
                break
            level = (level + ~right).clamp(max=len(REACHES) - 1)
        return best

    def _right(self, ordered: list[Encoded]) -> Tensor:
        """Return which answers are the likeliest, token by token under teacher forcing."""
        lengths = [len(item.prompt_ids) + len(item.target_ids) for item in ordered]

        def read(numbers: Sequence[int]) -> list[bool]:
            pairs = [(ordered[n].prompt_ids, ordered[n].target_ids) for n in numbers]
            rows = AnswerRows.of(self.language_model, pairs)
            verdicts = rows.verdicts(answer_logits(self.language_model, rows))
            return [bool(one) for one in verdicts.right]

        passes = list(length_sorted(lengths, self.rows_per_pass))
        found = torch.zeros(len(ordered), dtype=torch.bool)
        for numbers, verdicts in zip(passes, self.ranks.deal(passes, read), strict=True):
            found[numbers] = torch.tensor(verdicts)
        return found

    def _epsilon(self) -> float:
        """Return the machine epsilon of the dtype that the authors' code would use."""
        working = torch.promote_types(self.language_model.dtype, torch.float32)
        return float(torch.finfo(working).eps)

    def _keys_and_gradients(
        self, ordered: list[Encoded]
    ) -> tuple[float, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Return losses, and each layer's keys and output gradients at the answer tokens.

        Of losses first the mean over requests of their tokens' mean, then each request's sum.

        The loss behind a gradient is summed over one request, so the number of requests in a pass
        does not matter.
        """
        lengths = [len(item.prompt_ids) + len(item.target_ids) for item in ordered]
        sizes = [len(item.target_ids) for item in ordered]
        losses = torch.zeros(len(ordered))
        found: dict[str, dict[int, tuple[Tensor, Tensor]]] = {name: {} for name in self._names}

        def read(numbers: Sequence[int]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
            pairs = [(ordered[n].prompt_ids, ordered[n].target_ids) for n in numbers]
            backward = answer_factors(self.view, pairs, self._names)
            # Gradients of the sum over a request's tokens, not of their mean.
            counts = torch.tensor([sizes[n] for n in numbers for _ in range(sizes[n])])
            summed = {
                name: (inputs.double(), gradients.double() * counts[:, None].to(gradients.device))
                for name, (inputs, gradients) in backward.factors.items()
            }
            return backward.loss.float().cpu(), summed

        passes = list(length_sorted(lengths, self.rows_per_pass))
        for numbers, (loss, factors) in zip(passes, self.ranks.deal(passes, read), strict=True):
            losses[numbers] = loss
            ends = list(accumulate(sizes[n] for n in numbers))[:-1]
            for name, (inputs, summed) in factors.items():
                pieces = zip(inputs.tensor_split(ends), summed.tensor_split(ends), strict=True)
                found[name].update(zip(numbers, pieces, strict=True))
        order = range(len(ordered))
        joined = {
            name: (torch.cat([each[n][0] for n in order]), torch.cat([each[n][1] for n in order]))
            for name, each in found.items()
        }
        return float(losses.mean()), losses * torch.tensor(sizes), joined

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: one float64 linear system and the running sums."""
        return 8 * view.intermediate_size**2 + 3 * 8 * (view.intermediate_size + view.hidden_size)


def _updates(solved: Mapping[str, Solution]) -> dict[str, WeightUpdate]:
    """Return the updates of solved layers, by parameter name."""
    return {
        f"{name}.weight": LowRank(one.left.float(), one.right.float())
        for name, one in solved.items()
    }


def _running_addends(delta: Delta) -> dict[str, Tensor]:
    """Return a batch's addends to the running sums."""
    return {name: v for name, v in delta.history.items() if not name.startswith(LEFT_OUT)}


def _length_sorted_batches(encoded: Sequence[Encoded], size: int) -> list[list[int]]:
    """Split requests, in every form, into length-sorted mini-batches of numbers, longest first."""

    def length(number: int) -> int:
        return len(encoded[number].prompt_ids) + len(encoded[number].target_ids)

    ordered = sorted(range(len(encoded)), key=length, reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
