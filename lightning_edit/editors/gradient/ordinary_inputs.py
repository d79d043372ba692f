r"""What linear layers read on ordinary text, and which updates change their outputs there least.

An update Δ changes a layer's output at an input x by Δx, on ordinary text by
:math:`\mathrm{tr}(\Delta C \Delta^\top)` in the mean square, with :math:`C = E[x x^\top]`. Of all
updates that change so much, the one along :math:`-G C^{-1}` takes the most from a loss whose
gradient is G: steepest descent in this norm, as in K-FAC (Martens and Grosse, arXiv 1503.05671)
with its input factor alone.

Axis names: ``n`` -- tokens; ``d_in``/``d_out`` -- width of a layer's input and output.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.memory.neutral_texts import NEUTRAL_TEXTS
from lightning_edit.edits.exclusive import exact_edit
from lightning_edit.edits.shares import linear_module
from lightning_edit.exceptions import SolveError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.hooks import Side, capture
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.weights import Weight

#: Share of C that is its diagonal alone: the neutral texts have fewer tokens than a key is wide.
DIAGONAL = 0.5
#: Added to the diagonal, in its mean: an input that no text activates is not free to be written.
FLOOR = 0.01


class OrdinaryInputs:
    """Inputs of linear layers on neutral text, by parameter name.

    Args:
        model: The language model, as it is to be compared with.
        prompts: The tokenizer, with the format of prompts.
        weights: The weights that are trained. Those that are no matrix of a linear layer (biases,
            norms) are read as if their inputs were uncorrelated and of unit size.
    """

    def __init__(self, model: Any, prompts: PromptEncoder, weights: Sequence[Weight]) -> None:
        named = {one.name: linear_module(model, one.name) for one in weights if len(one.shape) == 2}
        modules = {name: module for name, module in named.items() if module is not None}
        self.metrics: dict[str, InputMetric] = {}
        self.transposed = {one.name for one in weights if one.transposed}
        if modules:
            rows = AnswerRows.of(model, [(ids, ()) for ids in prompts.prompts(NEUTRAL_TEXTS)])
            wanted: dict[str, Side] = dict.fromkeys(modules.values(), "input")
            with (
                exact_edit(model),
                torch.no_grad(),
                capture(model, wanted, stop=True) as captured,
            ):
                model(**rows.inputs, use_cache=False)
            metrics = {
                module: InputMetric(hidden[_mask(rows, hidden)])
                for module, hidden in captured.items()
            }
            self.metrics = {name: metrics[module] for name, module in modules.items()}

    def direction(self, name: str, gradient: Tensor) -> Tensor:
        """Return the steepest direction of a weight, in the layout of its parameter.

        Args:
            name: Name of the parameter.
            gradient: Gradient of the loss.
        """
        metric = self.metrics.get(name)
        if metric is None:
            return gradient
        if name in self.transposed:
            return metric.direction(gradient.mT).mT
        return metric.direction(gradient)

    def size(self, name: str, value: Tensor) -> float:
        """Return the squared norm of a weight, or of an update of it: what it puts out.

        Args:
            name: Name of the parameter.
            value: The weight, in the layout of its parameter.
        """
        metric = self.metrics.get(name)
        if metric is None:
            return float(value.square().sum())
        return metric.size(value.mT if name in self.transposed else value)


class InputMetric:
    r"""The metric of one layer's inputs, :math:`\frac12 C + \frac12 \mathrm{diag}\, C` and a floor.

    Args:
        inputs: What the layer reads at tokens of ordinary text.

    Raises:
        SolveError: If it is not finite.

    Example:
        >>> metric = InputMetric(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        >>> steep = metric.direction(torch.tensor([[1.0, 1.0]]))
        >>> round(float(steep[0, 1] / steep[0, 0]), 1)
        3.9
    """

    def __init__(self, inputs: Float[Tensor, "n d_in"]) -> None:
        X = inputs.double()
        if not bool(torch.isfinite(X).all()):
            raise SolveError(
                "lr=auto: what the trained layer reads on neutral text is not finite; load the "
                "model in float32 or bfloat16, or give lr as a number"
            )
        squares = X.square().mean(0)
        diagonal = DIAGONAL * squares + FLOOR * squares.mean()
        # Woodbury's form: as many tokens as there are, instead of a matrix as wide as a key.
        scaled = X / diagonal
        gram = scaled @ X.mT
        gram.diagonal().add_(len(X) / (1 - DIAGONAL))
        factor = torch.linalg.cholesky(gram)
        wide = torch.promote_types(inputs.dtype, torch.float32)
        self.inputs = inputs.to(wide)
        self.inverse = diagonal.reciprocal().to(wide)
        self.known = torch.linalg.solve_triangular(factor, scaled, upper=False).to(wide)

    def size(self, weight: Float[Tensor, "d_out d_in"]) -> float:
        """Return the squared norm of a weight or an update: tr(W M Wᵀ) for the metric M.

        Args:
            weight: W.
        """
        outputs = (weight @ self.inputs.mT).square().sum(0).mean()
        own = (weight.square() / self.inverse).sum()
        return float((1 - DIAGONAL) * outputs + own)

    def direction(self, gradient: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        """Return G times the metric's inverse.

        Args:
            gradient: G.
        """
        steepest: Tensor = gradient * self.inverse - (gradient @ self.known.mT) @ self.known
        return steepest


def _mask(rows: AnswerRows, hidden: Tensor) -> Tensor:
    """Return which positions of a layer's input hold a token: of two stacks each has its own."""
    if rows.encoder is not None and hidden.shape[:2] != rows.mask.shape:
        return rows.encoder[1]
    return rows.mask
