"""Size of what a projection reads and returns, on neutral text: the units of learning by rule.

The authors of memory editors give learning rates, bounds and margins as absolute numbers, for one
model. A model whose hidden states are eight times as large is the same function and would need
others; ``auto`` gives them in units of the model's own states.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from lightning_edit.exceptions import SolveError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.hooks import capture
from lightning_edit.models.prompt_encoder import Ids


class Norms(NamedTuple):
    """Norms of a projection's input and output.

    Args:
        inputs: Norm of what it reads.
        outputs: Norm of what it returns.
    """

    inputs: float
    outputs: float


@torch.no_grad()
def neutral_norms(
    model: nn.Module, module: str, prompts: Sequence[Ids], device: torch.device
) -> Norms:
    """Return the medians over the tokens of prompts.

    Args:
        model: A language model of one stack.
        module: Dotted name of the projection.
        prompts: Token ids of the prompts.
        device: Device that the model reads its input from.

    Raises:
        SolveError: If a norm is zero or not finite, so that it is no unit.
    """
    rows = AnswerRows.pad([(ids, ()) for ids in prompts], device)
    with capture(model, {module: "both"}, stop=True) as captured:
        model(input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False)
    # OPT flattens rows and positions to one axis before its MLP.
    each = (
        captured[f"{module}@{side}"].float().norm(dim=-1).view(rows.ids.shape)
        for side in ("input", "output")
    )
    norms = Norms(*(float(one[rows.mask].median()) for one in each))
    if not all(0 < norm < math.inf for norm in norms):
        raise SolveError(
            f"lr=auto: on neutral text {module} reads and returns vectors of the norms "
            f"{norms.inputs:g} and {norms.outputs:g}, expected finite ones above 0; load the model "
            "in float32 or bfloat16, take another layer, or give lr as a number"
        )
    return norms
