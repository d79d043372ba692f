"""Columns of benchmark tables: headers, direction (higher is better) and number format."""

from dataclasses import dataclass

from lightning_edit.exceptions import ConfigError
from lightning_edit.types import ASPECT_OF_KIND

#: Columns of a grid that lists none.
DEFAULT_COLUMNS: tuple[str, ...] = (
    "reliability/em@tf",
    "reliability/answer@gen",
    "reliability/em@gen",
    "generalization/em@tf",
    "generalization/answer@gen",
    "generalization/em@gen",
    "locality/kept@tf",
    "locality/kept@gen",
    "portability/em@tf",
    "portability/answer@gen",
    "portability/em@gen",
    "seconds_per_edit",
)
#: Columns that are measured once per run, not once per request.
TIMES = {
    "seconds_per_edit": "s/edit",
    "cpu_per_edit": "CPU s/edit",
    "seconds": "seconds",
    "peak_mb": "MB peak",
}
_ASPECT_HEADS = {
    "reliability": "Rel",
    "generalization": "Gen",
    "locality": "Loc",
    "portability": "Port",
    "understanding": "Underst",
    "known": "Known",
}
_MEASURE_HEADS = {
    "answer": "answer",
    "contains": "contains",
    "judge": "judge",
    "em": "em",
    "token_acc": "token",
    "kept": "kept",
    "margin_sign": "ES",
    "margin": "EM",
    "nll": "nll",
}
_SHARES = ("answer", "contains", "judge", "em", "token_acc", "kept", "margin_sign", "margin")
_LOWER_IS_BETTER = ("nll",)


@dataclass(frozen=True)
class Column:
    """One column of a benchmark table: a metric or a time.

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
        known = aspect in _ASPECT_HEADS and (not kind or ASPECT_OF_KIND.get(kind) == aspect)
        if not known or measure not in _MEASURE_HEADS or mode not in ("tf", "gen"):
            raise ConfigError(
                f"{self.name!r} is not a column; give <aspect>/<measure>@<mode> of "
                f"docs/metrics.md, such as {DEFAULT_COLUMNS[0]}, or {' or '.join(TIMES)}"
            )

    @property
    def is_time(self) -> bool:
        """Whether the column is a time or a size, measured once per run."""
        return self.name in TIMES

    @property
    def heads(self) -> tuple[str, ...]:
        """Header lines: aspect or kind, measure, mode."""
        if self.is_time:
            return (TIMES[self.name],)
        group, _, rest = self.name.partition("/")
        measure, _, mode = rest.partition("@")
        aspect, _, kind = group.partition(".")
        shown = f"{_MEASURE_HEADS[measure]}"
        return (*(kind.split("_") if kind else (_ASPECT_HEADS[aspect],)), shown, mode)

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is better."""
        return not self.is_time and self._measure not in _LOWER_IS_BETTER

    @property
    def is_share(self) -> bool:
        """Whether the value is a share, from 0 to 1, of which more is better."""
        return not self.is_time and self._measure in _SHARES and self._measure != "margin"

    @property
    def _measure(self) -> str:
        return self.name.partition("/")[2].partition("@")[0]

    def format_value(self, value: float, decimals: int) -> str:
        """Format a value: shares in per cent, seconds and sizes with two significant digits."""
        if self.is_time:
            return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
        if self._measure not in _SHARES:
            return f"{value:.2f}"
        return f"{100 * value:.{decimals}f}"
