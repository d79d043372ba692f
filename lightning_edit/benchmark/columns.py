"""Columns of a benchmark's tables: what they are called, and how a number is written in them."""

from dataclasses import dataclass

from lightning_edit.exceptions import ConfigError
from lightning_edit.types import ASPECT_OF_KIND

#: Columns where a grid names none.
USUAL: tuple[str, ...] = (
    "reliability/em@tf",
    "reliability/em@gen",
    "generalization/em@tf",
    "generalization/em@gen",
    "locality/kept@tf",
    "locality/kept@gen",
    "portability/em@tf",
    "portability/em@gen",
    "seconds_per_edit",
)
#: Measured once a run, not once a request.
TIMES = {"seconds_per_edit": "s/edit", "cpu_per_edit": "CPU s/edit", "seconds": "seconds"}
_SHORT = {
    "reliability": "Rel",
    "generalization": "Gen",
    "locality": "Loc",
    "portability": "Port",
    "known": "Known",
}
_MEASURES = {
    "em": "em",
    "token_acc": "token",
    "kept": "kept",
    "margin_sign": "ES",
    "margin": "EM",
    "nll": "nll",
}
_SHARES = ("em", "token_acc", "kept", "margin_sign", "margin")
_FALLING = ("nll",)


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: ``<aspect>/<measure>@<mode>`` as in ``docs/metrics.md``, or one of :data:`TIMES`.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name in TIMES:
            return
        group, _, rest = self.name.partition("/")
        measure, _, mode = rest.partition("@")
        aspect, _, kind = group.partition(".")
        known = aspect in _SHORT and (not kind or ASPECT_OF_KIND.get(kind) == aspect)
        if not known or measure not in _MEASURES or mode not in ("tf", "gen"):
            raise ConfigError(
                f"{self.name!r} is no column; give <aspect>/<measure>@<mode> of docs/metrics.md, "
                f"such as {USUAL[0]}, or {' or '.join(TIMES)}"
            )

    @property
    def is_time(self) -> bool:
        """Whether it is measured once a run."""
        return self.name in TIMES

    @property
    def heads(self) -> tuple[str, ...]:
        """Its head in short lines, the broadest first."""
        if self.is_time:
            return (TIMES[self.name],)
        group, _, rest = self.name.partition("/")
        measure, _, mode = rest.partition("@")
        aspect, _, kind = group.partition(".")
        shown = f"{_MEASURES[measure]}"
        return (*(kind.split("_") if kind else (_SHORT[aspect],)), shown, mode)

    @property
    def rises(self) -> bool:
        """Whether more is better."""
        return not self.is_time and self._measure not in _FALLING

    @property
    def _measure(self) -> str:
        return self.name.partition("/")[2].partition("@")[0]

    def write(self, value: float, decimals: int) -> str:
        """Write a value: shares in per cent, seconds with two digits that count."""
        if self.is_time:
            return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
        if self._measure not in _SHARES:
            return f"{value:.2f}"
        return f"{100 * value:.{decimals}f}"
