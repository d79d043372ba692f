"""Residual schedules: how the change that is still wanted is divided among the edited layers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ResidualSchedule:
    """Division of the residual R among the edited layers, lowest first.

    Args:
        divisor: Divides the residual of a layer, given the number of layers left, that one
            included.
        residual: ``remaining``: target minus current value, read again at every layer on the model
            with the updates of the layers below. ``searched``: the vector δ that the search found,
            for every layer.
    """

    divisor: Callable[[int], float]
    residual: Literal["remaining", "searched"] = "remaining"


#: MEMIT, eq. 20: of the layers left, each writes the same part of what remains.
EVEN_SPLIT = ResidualSchedule(float)
#: PMET: divided by the square root of the layers left, so more is written in the lower layers.
SQRT_SPLIT = ResidualSchedule(math.sqrt)
#: D4S: parts of the searched vector; several layers together write more than it.
SEARCHED_SPLIT = ResidualSchedule(float, "searched")
