"""Confidence intervals of means over requests: the paired bootstrap, and Wilson's for shares.

The bootstrap (Efron, 1979) draws requests with replacement. Its percentile interval of a share
collapses where all requests agree: 100 % of 20 requests would be known to ±0. Shares of values that
are 0 or 1 therefore get the score interval of Wilson (1927, J. Am. Stat. Assoc. 22, p. 209), which
for 20 of 20 begins at 84 %.

Axis names: ``s`` -- seeds; ``r`` -- requests; ``b`` -- resamples; ``c`` -- candidates that were
measured on the same requests; ``a`` -- aspects.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Resamples: the ends of a 95 % interval then move by less than a tenth of its width.
_RESAMPLES = 2000
_COVER = (2.5, 97.5)
#: The normal distribution's 97.5 % quantile.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Mean:
    """A mean and where it would lie with other requests.

    Args:
        value: The mean.
        low: Lower end of its 95 % interval.
        high: Upper end.
        n: Requests behind it.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share of ``n`` requests (Wilson, 1927).

    Args:
        share: How many of them, 0 to 1.
        n: Number of requests, at least one.

    Example:
        >>> [round(end, 3) for end in wilson(1.0, 20)]
        [0.839, 1.0]
    """
    scale = 1 + _Z**2 / n
    middle = (share + _Z**2 / (2 * n)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


class Resampling:
    """Resamples of requests, and of seeds where there are several, shared by all methods.

    Sharing them pairs the methods: what is hard about a request is hard for both, and drops out of
    their difference.

    Args:
        requests: Number of requests.
        seeds: Number of seeds.
        resamples: How many draws.
        seed: Seed of the draws; with one seed the same table is made on every call.
    """

    def __init__(
        self, requests: int, seeds: int = 1, resamples: int = _RESAMPLES, seed: int = 0
    ) -> None:
        generator = np.random.default_rng(seed)
        even = np.full(requests, 1 / requests)
        self._requests = generator.multinomial(requests, even, resamples).astype(np.float64)
        self._seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)

    def mean(self, values: Floats) -> Mean | None:
        """Return a mean and its interval.

        Args:
            values: One a seed and request, shape (s, r); NaN where a request has none.

        Returns:
            ``None`` where no request has a value.
        """
        known = ~np.isnan(values)
        if not known.any():
            return None
        mean, n = float(values[known].mean()), int(known.any(0).sum())
        # With several seeds their own spread counts too, which Wilson's interval does not know.
        share = len(values) == 1 and np.isin(values[known], (0.0, 1.0)).all()
        if share or (mean in (0.0, 1.0) and bool((values[known] == mean).all())):
            return Mean(mean, *wilson(mean, n), n)
        low, high = np.percentile(self._means(values), _COVER)
        return Mean(mean, float(low), float(high), n)

    def table_means(self, values: Floats) -> Floats:
        """Return the means of several columns in every resample, of candidates that share it.

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
        """Return whether the mean of ``first - second`` is beyond its own spread."""
        difference = first - second
        if np.isnan(difference).all() or not np.nanmax(np.abs(difference)) > 0:
            return False
        low, high = np.percentile(self._means(difference), _COVER)
        return bool(low > 0 or high < 0)

    def _means(self, values: Floats) -> Floats:
        """Return the mean in every resample that draws a value at all."""
        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)
        seeds: Any = self._seeds
        sums = np.einsum("bs,br,sr->b", seeds, self._requests, filled, optimize=True)
        counts = np.einsum("bs,br,sr->b", seeds, self._requests, known * 1.0, optimize=True)
        means: Floats = sums[counts > 0] / counts[counts > 0]
        return means
