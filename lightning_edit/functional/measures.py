"""Measures on plain numbers. Torch is not needed, so stored results can be re-scored without it."""

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def agreement(first: Sequence[int], second: Sequence[int]) -> float:
    """Return the share of places where two token sequences of one length agree.

    Args:
        first: Token ids.
        second: As many token ids.

    Raises:
        ValueError: If the lengths differ or there is no token.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"token sequences of {len(first)} and {len(second)} tokens cannot be compared; "
            "score the same answer with the same tokenizer"
        )
    return mean([float(a == b) for a, b in zip(first, second, strict=True)])


def probability_margin(nll_right: float, nll_wrong: float) -> float:
    r"""Return how much more probable the right answer is: :math:`e^{-\ell(r)} - e^{-\ell(w)}`.

    The magnitudes EM, PM and NM of COUNTERFACT (ROME, arXiv 2202.05262, section 3.4); :math:`\ell`
    is the mean negative log probability of an answer's tokens.

    Args:
        nll_right: Mean negative log probability of the answer that should win, in nats.
        nll_wrong: The same of the answer that should lose.
    """
    return math.exp(-nll_right) - math.exp(-nll_wrong)
