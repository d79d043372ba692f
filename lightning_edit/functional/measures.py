"""Token agreement and probability margins, without torch so that results can be re-scored."""

import math
from collections.abc import Sequence

NLL_CAP = 1000.0
"""Loss of one token, in nats, that a broken model's NaN or infinity counts as."""
MOST_NLL = 999.0
"""Cap on one token's loss that is finite, so that it is not taken for a broken model's."""


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def agreement(first: Sequence[int], second: Sequence[int]) -> float:
    """Return the token agreement: share of positions where two sequences of one length agree.

    Args:
        first: Token ids.
        second: Token ids, equally many.

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
    r"""Return the probability margin of the right answer: :math:`e^{-\ell(r)} - e^{-\ell(w)}`.

    The magnitudes EM, PM and NM of COUNTERFACT (ROME, arXiv 2202.05262, section 3.4); :math:`\ell`
    is the mean negative log-probability of an answer's tokens.

    Args:
        nll_right: Mean negative log-probability of the answer that should win, in nats.
        nll_wrong: The same of the answer that should lose.
    """
    return math.exp(-nll_right) - math.exp(-nll_wrong)


def means_by_request(
    values: Sequence[float], edits: Sequence[int], kinds: Sequence[str] = ()
) -> list[float]:
    """Average the scores of probes within a request: per kind, then over its kinds.

    The same definition as :func:`lightning_edit.metrics.request_means`, so that a score has one
    meaning in training, evaluation and results: a request with many probes counts as one.

    Args:
        values: One score a probe.
        edits: Number of the request of each probe.
        kinds: Kind of each probe; empty where all are of one kind.

    Returns:
        One mean per request that has a probe.
    """
    of_request: dict[int, dict[str, list[float]]] = {}
    for number, (value, edit) in enumerate(zip(values, edits, strict=True)):
        kind = kinds[number] if kinds else ""
        of_request.setdefault(edit, {}).setdefault(kind, []).append(float(value))
    return [mean([mean(listed) for listed in found.values()]) for found in of_request.values()]
