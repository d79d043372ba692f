"""Leakage of an edited answer into text that did not ask for it. Torch is not needed."""

import math
from collections.abc import Sequence

from lightning_edit.functional.text import normalise


def mentions(continuation: str, answers: Sequence[str]) -> bool:
    """Return whether a generated text contains one of the answers, as whole words in order.

    Args:
        continuation: Generated text.
        answers: Answers to search for.

    Example:
        >>> mentions("He lives in Rome.", ["rome"]), mentions("a romantic", ["Roma"])
        (True, False)
    """
    text = f" {normalise(continuation)} "
    return any(f" {normalise(answer)} " in text for answer in answers)


def probability(nll: float) -> float:
    """Return an answer's probability: e to minus the mean negative log-probability of its tokens.

    Args:
        nll: Mean negative log-probability over the tokens, in nats.
    """
    return math.exp(-nll)
