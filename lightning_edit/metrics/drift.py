"""Drift metrics: retention, hidden-state distance, weight growth, trend. See ``docs/metrics.md``.

Axis names: ``n`` -- items of one update; ``d`` -- hidden width; ``b`` -- bins of age.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.functional.drift import (
    DISTANCE_CAP,
    cosine_distance,
    half_life,
    relative_distance,
    slope,
)

AGE_BINS: tuple[int, ...] = (
    *(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
    *(10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000),
)
"""Lowest age of each bin of a retention curve, in later edits."""


class Retention(Metric):
    """Retention of edits: share of answers that stay correct, by age in later edits.

    ``compute`` returns ``retention`` (all ages above 0 together) and, if the curve falls that far,
    ``half_life``: the number of later edits after which half is lost, interpolated linearly between
    the mean ages of the bins. The states are sums by age bin.

    Example:
        >>> metric = Retention()
        >>> once, now = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])
        >>> metric.update(torch.tensor([1, 30]), once, now)
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'retention': 0.5, 'half_life': 15.5}
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    kept: Tensor
    once: Tensor
    ages: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("kept", "once", "ages"):
            zeros = torch.zeros(len(AGE_BINS), dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(
        self, ages: Int[Tensor, " n"], once: Float[Tensor, " n"], now: Float[Tensor, " n"]
    ) -> None:
        """Add answers; a rank without a share may add none.

        Args:
            ages: Number of edits committed after each answer's own.
            once: 1.0 if the answer was correct after its own edit, else 0.0.
            now: 1.0 if it is correct now, else 0.0.
        """
        device = self.kept.device
        edges = torch.tensor(AGE_BINS, device=device)
        bins = torch.bucketize(ages.to(device), edges, right=True) - 1
        once = once.to(device, torch.float64)
        self.once.index_add_(0, bins, once)
        self.kept.index_add_(0, bins, once * now.to(device, torch.float64))
        self.ages.index_add_(0, bins, once * ages.to(device, torch.float64))

    def curve(self) -> list[tuple[float, float, int]]:
        """Return the retention curve: mean age, share still correct, and count, of bins above 0."""
        return [
            (age / once, kept / once, int(once))
            for age, kept, once in zip(
                self.ages.tolist()[1:], self.kept.tolist()[1:], self.once.tolist()[1:], strict=True
            )
            if once > 0
        ]

    def compute(self) -> dict[str, Tensor]:
        """Compute retention and half-life by name; empty if no correct answer is older than 0."""
        curve = self.curve()
        if not curve:
            return {}
        values = {"retention": self.kept[1:].sum() / self.once[1:].sum()}
        life = half_life([age for age, _, _ in curve], [share for _, share, _ in curve])
        if life is not None:
            values["half_life"] = torch.tensor(life, dtype=torch.float64, device=self.kept.device)
        return values


class HiddenDistance(Metric):
    """Cosine and relative L2 distance of hidden states from the pristine model's, on fixed texts.

    ``compute`` returns means over texts: ``hidden_cosine``, 1 − cos, and ``hidden_l2``, the norm of
    the change over the norm before.

    Example:
        >>> metric = HiddenDistance()
        >>> metric.update(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'hidden_cosine': 1.0, 'hidden_l2': 2.236}
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    sums: Tensor
    states: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("states", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, now: Float[Tensor, "n d"], before: Float[Tensor, "n d"]) -> None:
        """Add hidden states; a rank without a share may add none.

        Args:
            now: Hidden states of the current model.
            before: Hidden states of the pristine model.
        """
        pair = cosine_distance(now, before).sum(), relative_distance(now, before).sum()
        self.sums += torch.stack(pair).to(self.sums.device)
        self.states += len(now)

    def compute(self) -> dict[str, Tensor]:
        """Compute mean distances by name; empty if there was no hidden state."""
        if self.states == 0:
            return {}
        cosine, distance = self.sums / self.states
        return {"hidden_cosine": cosine, "hidden_l2": distance}


class WeightGrowth(Metric):
    """Weight growth: Σ|W| / Σ|W₀|, ‖W‖ / ‖W₀‖ and, where W₀ is kept, ‖W − W₀‖ / ‖W₀‖.

    Norms are over all entries of all added weights; a ratio that is not finite, or above 1000,
    counts as 1000. The L1 norm is the one of *Reasons and Solutions for the Decline in Model
    Performance after Editing* (arXiv 2410.23843).

    Example:
        >>> metric = WeightGrowth()
        >>> metric.update(l1=6.0, squared=5.0, l1_before=8.0, squared_before=4.0, moved=1.0)
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'l1_growth': 0.75, 'l2_growth': 1.118, 'update_norm': 0.5}
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        l1: float,
        squared: float,
        l1_before: float,
        squared_before: float,
        moved: float | None = None,
    ) -> None:
        """Add the norms of one weight; a rank without a share may add zeros.

        Args:
            l1: Σ|w| over its entries now.
            squared: Σw².
            l1_before: Σ|w₀| of the pristine model.
            squared_before: Σw₀².
            moved: Σ(w − w₀)²; ``None`` where the pristine weight is not kept.
        """
        known = (0.0, 0.0) if moved is None else (moved, squared_before)
        values = (l1, squared, l1_before, squared_before, *known)
        self.sums += torch.tensor(values, dtype=torch.float64, device=self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """Compute norm ratios by name; empty if no weight was added."""
        l1, squared, l1_before, squared_before, moved, base = self.sums
        if squared_before == 0:
            return {}
        values = {"l1_growth": l1 / l1_before, "l2_growth": (squared / squared_before).sqrt()}
        if base > 0:
            values["update_norm"] = (moved / base).sqrt()
        cap = DISTANCE_CAP
        return {
            name: value.nan_to_num(nan=cap, posinf=cap).clamp(max=cap)
            for name, value in values.items()
        }


class Trend(Metric):
    """Linear trend of a value over edits: least-squares slope over all measurements so far.

    ``compute`` returns ``per_100_edits``, from two measurements on.

    Example:
        >>> metric = Trend()
        >>> metric.update(0, 1.0)
        >>> metric.update(50, 0.5)
        >>> metric.compute()["per_100_edits"].item()
        -1.0
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, edits: int, value: float) -> None:
        """Add a measurement.

        Args:
            edits: Number of edits so far.
            value: The measured value.
        """
        row = (1, edits, value, edits * edits, edits * value)
        self.sums += torch.tensor(row, dtype=torch.float64, device=self.sums.device)

    def update_sums(self, sums: list[float]) -> None:
        """Restore measurements from their sums in a checkpoint.

        Args:
            sums: Sums of 1, edits, value, edits², edits · value.
        """
        self.sums += torch.tensor(sums, dtype=torch.float64, device=self.sums.device)
        self._update_count += 1
        self._computed = None

    def compute(self) -> dict[str, Tensor]:
        """Compute the slope by name; empty before there are two points."""
        count, x, y, xx, xy = self.sums.tolist()
        found = slope(count, x, y, xx, xy)
        if found is None:
            return {}
        return {"per_100_edits": torch.tensor(100 * found, dtype=torch.float64)}
