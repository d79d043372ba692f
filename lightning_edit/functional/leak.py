"""Probability of an answer, for leakage into text that did not ask for it. Torch is not needed."""

import math


def probability(nll: float) -> float:
    """Return an answer's probability: e to minus the mean negative log-probability of its tokens.

    Args:
        nll: Mean negative log-probability over the tokens, in nats.
    """
    return math.exp(-nll)
