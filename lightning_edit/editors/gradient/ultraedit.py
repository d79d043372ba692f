"""UltraEdit: Gu et al., Training-, Subject-, and Memory-Free Lifelong Editing in Language Models.

TMLR 2026, arXiv 2505.14679. Axis names: ``n`` -- answer tokens of all edits of a batch;
``d_in``/``d_out`` -- width of an edited layer's input and output; ``w`` -- their sum.
"""

from collections.abc import Sequence
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
#: than half of it arrives, since softmax flattens as an answer gets likely.
REACHES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
#: Share of a batch's answers that are to be the likeliest: the first step that does it is taken.
WRITTEN = 0.9


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
            narrower model needs a larger η. ``auto`` chooses it for each batch: of the steps that
            lower the loss, to first order, by :data:`REACHES` times its value, the first after
            which :data:`WRITTEN` of the answers are the likeliest, else the one with most of them.
            Each step that is tried costs a forward pass.
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
        shares, so neighbours pay for what the last answers need: docs/settings.md has figures.
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
            solved = {
                name: self._solve(name, keys.shape[1], rows[name], added)
                for name, (keys, _) in tokens.items()
            }
            drop = sum(
                first_order_drop(*tokens[name], one.left, one.right) for name, one in solved.items()
            )
            if self.eta != "auto":
                eta = self.eta
            elif drop > 0:
                eta = self._smallest_eta(ordered, solved, float(nll.sum()) / drop)
            else:  # a batch without gradients has nothing to write, and no η would change that
                eta = 0.0
            owners = tuple(
                owner_of[n] for part in parts for n in part for _ in rows_of[n].target_ids
            )
            # With more tokens than outputs an update was solved for the whole matrix.
            weights = {name: f"{name}.weight" for name in solved}
            summed = [name for name, one in solved.items() if one.left.shape[1] == len(owners)]
            history = dict(added)
            for name in summed if len(batch) > 1 else ():
                one = solved[name]
                if one.gram_inverse is not None:
                    left_out = left_out_columns(one.left * eta, one.gram_inverse, owners)
                    history[LEFT_OUT + weights[name]] = left_out.mT.float()
            updates = _updates(solved, eta)
        columns = {weights[name]: owners for name in summed}
        if self.eta == "auto":
            self.chose({"eta": eta})
        info = {"loss": loss, "eta": eta, "first_order_drop": eta * drop / len(ordered)}
        return Delta(
            batch.ids, updates, history=history, info=info | self.chosen_info(), columns=columns
        )

    def _solve(self, name: str, d_in: int, rows: Tensor, added: dict[str, Tensor]) -> Solution:
        here = added[self._sums_name(name)]
        before = self.seen.get(self._sums_name(name))
        total = here if before is None else before.to(here.device) + here
        keys, gradients = rows[:, :d_in], rows[:, d_in:]
        if float(total[0, 0]) < self.warmup:
            shifts = value_shifts(scale_alone(keys), scale_alone(gradients), 1.0)
        else:
            scaled = standardise(rows, total, self._epsilon())
            shifts = value_shifts(scaled[:, :d_in], scaled[:, d_in:], 1.0)
        preserved = Preserved.of(ridge=1.0, where=name)
        with self.stage("solve"):
            return least_squares(keys.mT, shifts.mT, preserved)

    def _smallest_eta(
        self, ordered: list[Encoded], solved: dict[str, Solution], unit: float
    ) -> float:
        """Return the smallest η tried at which enough answers are the likeliest, else the best.

        Args:
            ordered: The requests.
            solved: What is written with an η of 1.
            unit: The η whose update takes the loss once, to first order.
        """
        best, most = 0.0, -1
        for reach in REACHES:
            with Delta((), _updates(solved, reach * unit)).applied(self.language_model):
                right = self._right(ordered)
            if right > most:
                best, most = reach * unit, right
            if most >= WRITTEN * len(ordered):
                break
        return best

    def _right(self, ordered: list[Encoded]) -> int:
        """Return how many answers are the likeliest, token by token under teacher forcing."""
        lengths = [len(item.prompt_ids) + len(item.target_ids) for item in ordered]

        def read(numbers: Sequence[int]) -> int:
            pairs = [(ordered[n].prompt_ids, ordered[n].target_ids) for n in numbers]
            rows = AnswerRows.of(self.language_model, pairs)
            verdicts = rows.verdicts(answer_logits(self.language_model, rows))
            return int(verdicts.right.sum())

        return sum(self.ranks.deal(list(length_sorted(lengths, self.rows_per_pass)), read))

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


def _updates(solved: dict[str, Solution], eta: float) -> dict[str, WeightUpdate]:
    """Return the updates of solved layers, by parameter name."""
    return {
        f"{name}.weight": LowRank((one.left * eta).float(), one.right.float())
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
