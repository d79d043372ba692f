"""Learning rates by rule: what every editor with ``lr="auto"`` does around the rule itself."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.exceptions import SolveError
from lightning_edit.functional.auto import step_for_drop


def rate_for(
    editor: Editor,
    loss: Tensor,
    trained: Sequence[Tensor],
    reach: float,
) -> float:
    """Return the learning rate of ``auto`` at a loss, and note it as chosen.

    Args:
        editor: The editor.
        loss: Its loss before the first step, with the graph.
        trained: What is trained.
        reach: Share of the loss that the first step takes, to first order.

    Raises:
        SolveError: If loss or gradient are not finite.
    """
    gradients = torch.autograd.grad(loss, trained)
    rate = step_for_drop(float(loss.detach()), gradients, reach)
    if not math.isfinite(rate):
        raise SolveError(
            f"lr=auto: loss or gradient of {type(editor).__name__} are not finite before the first "
            "step; load the model in float32 or bfloat16, or give lr as a number"
        )
    editor.chose({"lr": rate})
    return rate
