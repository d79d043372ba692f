"""Confidence intervals of means over requests: the paired bootstrap, and Wilson's for shares.

The bootstrap (Efron, 1979) draws requests with replacement. Its percentile interval of a share
collapses where all requests agree: 100 % of 20 requests would be known to ±0. Shares of values that
are 0 or 1 therefore get the score interval of Wilson (1927, J. Am. Stat. Assoc. 22, p. 209), which
for 20 of 20 begins at 84 %.

Axis names: ``s`` -- seeds; ``r`` -- requests; ``b`` -- resamples; ``c`` -- candidates that were
measured on the same requests; ``a`` -- aspects.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Number of resamples; the ends of a 95 % interval then move by less than 1/10 of its width.
_RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)
#: The normal distribution's 97.5 % quantile.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Mean:
    """Mean over requests with its 95 % confidence interval.

    Args:
        value: The mean.
        low: Lower end of the interval.
        high: Upper end.
        n: Number of requests behind it.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half-width of the confidence interval."""
        return (self.high - self.low) / 2


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share of ``n`` requests (Wilson, 1927).

    Args:
        share: Share of the requests, 0 to 1.
        n: Number of requests, at least one.

    Example:
        >>> [round(end, 3) for end in wilson(1.0, 20)]
        [0.839, 1.0]
    """
    scale = 1 + _Z**2 / n
    middle = (share + _Z**2 / (2 * n)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def cluster_mean(
    groups: Sequence[Sequence[float]], resamples: int = _RESAMPLES, seed: int = 0
) -> Mean:
    """Return the mean of all values and its 95 % interval, where values of a group go together.

    Whole groups are drawn with replacement (cluster bootstrap; Davison and Hinkley, Bootstrap
    Methods, 1997, section 3.8): facts around one edit change together, so that ten facts of one
    edit say less than a fact of each of ten. The values of a single group are drawn one by one.

    Args:
        groups: Values by group, at least one value in all.
        resamples: Number of draws.
        seed: Seed of the draws.

    Example:
        >>> cluster_mean([[1.0, 1.0], [1.0]])
        Mean(value=1.0, low=1.0, high=1.0, n=3)
    """
    listed = [list(group) for group in groups if len(group)]
    if len(listed) == 1:
        listed = [[value] for value in listed[0]]
    sums = np.array([sum(group) for group in listed])
    counts = np.array([len(group) for group in listed], dtype=np.float64)
    drawn = np.random.default_rng(seed).multinomial(
        len(listed), np.full(len(listed), 1 / len(listed)), resamples
    )
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), _PERCENTILES)
    return Mean(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()))


class Resampling:
    """Bootstrap resamples of requests (and of seeds, if several), shared by all methods.

    Sharing them pairs the methods: the difficulty of a request is the same for both and cancels in
    their difference.

    Args:
        requests: Number of requests.
        seeds: Number of seeds.
        resamples: Number of draws.
        seed: Seed of the draws; the same seed gives the same table on every call.
    """

    def __init__(
        self, requests: int, seeds: int = 1, resamples: int = _RESAMPLES, seed: int = 0
    ) -> None:
        generator = np.random.default_rng(seed)
        even = np.full(requests, 1 / requests)
        self._requests = generator.multinomial(requests, even, resamples).astype(np.float64)
        self._seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)

    def mean(self, values: Floats) -> Mean | None:
        """Return a mean and its 95 % confidence interval.

        Args:
            values: One per seed and request, shape (s, r); NaN where a request has none.

        Returns:
            ``None`` where no request has a value.
        """
        known = ~np.isnan(values)
        if not known.any():
            return None
        mean, n = float(values[known].mean()), int(known.any(0).sum())
        # With several seeds their own spread counts too, which Wilson's interval ignores.
        share = len(values) == 1 and np.isin(values[known], (0.0, 1.0)).all()
        if share or (mean in (0.0, 1.0) and bool((values[known] == mean).all())):
            return Mean(mean, *wilson(mean, n), n)
        low, high = np.percentile(self._means(values), _PERCENTILES)
        return Mean(mean, float(low), float(high), n)

    def table_means(self, values: Floats) -> Floats:
        """Return bootstrap means by aspect in every resample, of candidates that share it.

        Args:
            values: By candidate, request and aspect, shape (c, r, a); NaN where a request has no
                value.

        Returns:
            Shape (c, b, a); NaN where a resample draws no value.
        """
        known = ~np.isnan(values)
        sums = np.einsum("br,cra->cba", self._requests, np.where(known, values, 0.0))
        counts = np.einsum("br,cra->cba", self._requests, known * 1.0)
        with np.errstate(invalid="ignore"):
            means: Floats = sums / counts
        return means

    def differ(self, first: Floats, second: Floats) -> bool:
        """Test whether the paired mean of ``first - second`` differs from 0 at the 95 % level."""
        difference = first - second
        if np.isnan(difference).all() or not np.nanmax(np.abs(difference)) > 0:
            return False
        low, high = np.percentile(self._means(difference), _PERCENTILES)
        return bool(low > 0 or high < 0)

    def _means(self, values: Floats) -> Floats:
        """Return the bootstrap mean of every resample that draws at least one value."""
        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)
        seeds: Any = self._seeds
        sums = np.einsum("bs,br,sr->b", seeds, self._requests, filled, optimize=True)
        counts = np.einsum("bs,br,sr->b", seeds, self._requests, known * 1.0, optimize=True)
        means: Floats = sums[counts > 0] / counts[counts > 0]
        return means
