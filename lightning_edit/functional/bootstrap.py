"""How far a mean over requests would move with other requests: the bootstrap, paired by request.

Axis names: ``s`` -- seeds; ``r`` -- requests; ``b`` -- resamples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Resamples: the ends of a 95 % interval then move by less than a tenth of its width.
_RESAMPLES = 2000
_COVER = (2.5, 97.5)


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


class Resampling:
    """Resamples of requests, and of seeds where there are several, shared by all methods.

    Sharing them pairs the methods: what is hard about a request is hard for both, and drops out of
    their difference.

    Args:
        requests: Number of requests.
        seeds: Number of seeds.
    """

    def __init__(self, requests: int, seeds: int = 1) -> None:
        generator = np.random.default_rng(0)  # the same table on every call
        even = np.full(requests, 1 / requests)
        self._requests = generator.multinomial(requests, even, _RESAMPLES).astype(np.float64)
        self._seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), _RESAMPLES)

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
        low, high = np.percentile(self._means(values), _COVER)
        return Mean(float(values[known].mean()), float(low), float(high), int(known.any(0).sum()))

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
