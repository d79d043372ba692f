"""Panel of a benchmark: methods × columns, as texts, with the share behind each for its colour."""

from collections.abc import Sequence
from dataclasses import dataclass

#: Matplotlib's ``cividis`` at eleven steps, from 0 to 1: made for colour-blind readers, and its
#: lightness rises evenly, so that it is readable in grey.
SCALE = (
    "#00224E", "#083370", "#35456C", "#4F576C", "#666970", "#7D7C78",
    "#948E77", "#AEA371", "#C8B866", "#E5CF52", "#FEE838",
)  # fmt: skip
_DARK = 0.475  # of the scale: white figures below it, black ones above; contrast is 4.4 at least


@dataclass(frozen=True)
class Panel:
    """One panel: the scores of some methods.

    Args:
        title: Model, data and protocol.
        heads: Names of the columns, in lines.
        rows: Names of the methods.
        values: Shares from 0 to 1, one list a method; ``None`` where there is none, such as a time.
        texts: What each cell says, such as a share in per cent with half of its interval.
        notes: Notes below it, such as the number of requests.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def has_scores(self) -> bool:
        """Whether a cell has a share."""
        return any(value is not None for row in self.values for value in row)


def ground(share: float) -> str:
    """Return the colour of a share, as hexadecimal RGB.

    Args:
        share: From 0 to 1.
    """
    place = min(max(share, 0.0), 1.0) * (len(_STEPS) - 1)
    low = min(int(place), len(_STEPS) - 2)
    mixed = [
        round(a + (b - a) * (place - low))
        for a, b in zip(_STEPS[low], _STEPS[low + 1], strict=True)
    ]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def ink(share: float) -> str:
    """Return the colour of figures on the ground of a share: white or black.

    Args:
        share: From 0 to 1.
    """
    return "#ffffff" if share < _DARK else "#000000"


def _rgb(colours: Sequence[str]) -> list[tuple[int, ...]]:
    return [tuple(int(one[n : n + 2], 16) for n in (1, 3, 5)) for one in colours]


_STEPS = _rgb(SCALE)
