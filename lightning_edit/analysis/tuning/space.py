"""Search space of an editor's settings: which are searched, and between which values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lightning_edit.exceptions import ConfigError

#: Settings that are searched by default, and how far around their value: a factor down and one up.
#: They are the ones whose best value depends on the scale of a model's activations and gradients.
FACTORS: dict[str, tuple[float, float]] = {
    "lr": (10.0, 10.0),
    "eta": (10.0, 1e5),
    "steps": (4.0, 2.0),
    "clamp": (4.0, 4.0),
    "moment_weight": (30.0, 30.0),
    "norm_weight": (30.0, 30.0),
    "norm_constraint": (10.0, 30.0),
    "null_threshold": (10.0, 5.0),
    "radius": (5.0, 5.0),
    "radius_share": (3.0, 3.0),
    "act_ratio": (1.5, 1.13),
    "scale": (5.0, 5.0),
    "add": (4.0, 4.0),
    "alpha": (4.0, 4.0),
    "kept": (4.0, 2.0),
}
#: Of settings that are ``auto``, whose value is found when the editor is bound or edits: the
#: smallest and the largest number that is tried beside the rule. They span what is published for
#: six models and what suits models of some million parameters. By setting; where methods differ, by
#: the class of a method or of its family, and setting.
AUTO_BOUNDS: dict[str, tuple[float, float]] = {
    "lr": (1e-5, 1e-1),
    # A step in the space of hidden states, whose scale differs between models; not in weights.
    "LocateThenEdit.lr": (1e-2, 1e1),
    "GRACE.lr": (1e-2, 1e2),
    # Of a matrix between activations: the rules choose 0.35 to 22 on three models.
    "WISE.lr": (1e-2, 1e2),
    "MEMOIR.lr": (1e-2, 1e3),
    "steps": (10.0, 100.0),
    "weight_decay": (1e-3, 1.0),
    "eta": (1e-7, 1e-1),
    "clamp": (0.2, 8.0),
    "scale": (0.1, 2.0),
    "moment_weight": (1.0, 3e4),
    "norm_weight": (1e-3, 1e2),
    "norm_constraint": (5e-5, 1e-1),
    "WISE.norm_constraint": (1e-2, 1e2),
    "null_threshold": (5e-3, 5e2),
    "threshold": (0.01, 1.0),
    "RAG.threshold": (0.1, 1.0),
    "radius": (0.05, 50.0),
    "add": (2.0, 512.0),
    "alpha": (0.1, 1.0),
}
#: Of these, settings that count something.
COUNTS = frozenset({"steps"})
AUTO: Final = "auto"

Setting = int | float | str
"""A number, or ``auto`` for the editor's rule."""
#: Settings that are shares: never above one.
SHARES = frozenset({"radius_share", "act_ratio", "kept"})


@dataclass(frozen=True)
class Dimension:
    """One searched setting.

    Args:
        name: Name of the editor's argument.
        low: Smallest value.
        high: Largest value.
        start: Value to begin with: the editor's own, which may be ``auto``.
        integer: Whether values are whole numbers.
        log: Whether values are drawn evenly in their logarithm.

    A setting that begins as ``auto`` may stay so: the rule is one of its values.
    """

    name: str
    low: int | float
    high: int | float
    start: Setting
    integer: bool = False
    log: bool = True

    @property
    def may_be_auto(self) -> bool:
        """Whether the editor's rule is one of the values."""
        return self.start == AUTO

    def to_row(self) -> dict[str, Any]:
        """Convert to plain containers for JSON."""
        row = {"low": self.low, "high": self.high, "integer": self.integer, "log": self.log}
        return row | ({AUTO: True} if self.may_be_auto else {})


def search_space(
    arguments: Mapping[str, Any],
    given: Mapping[str, Sequence[int | float]] | None = None,
    only: Sequence[str] | None = None,
    kinds: Mapping[str, type[Any]] | None = None,
) -> list[Dimension]:
    """Return the settings to search, around an editor's values.

    Args:
        arguments: The editor's arguments with their values; others than numbers, and than ``auto``
            for a number (:data:`AUTO_BOUNDS`), are left alone. A class and a dot may stand before
            a name, see :func:`~lightning_edit.analysis.tuning.arguments.arguments_of`.
        given: Bounds of a user, by name: the smallest and the largest number that is tried; where
            the setting is ``auto``, beside the rule.
        only: Names of the settings to search; ``None``: those of :data:`FACTORS` that the editor
            has and that are above zero, those that are ``auto`` with bounds of their class, and
            those with given bounds.
        kinds: Class of the editor that has a setting, by name: its scale may be that of a family.

    Raises:
        ConfigError: If a name is not a number of the editor, or bounds are not two ascending
            numbers above zero.
    """
    given, kinds = dict(given or {}), kinds or {}
    numbers = {
        name: value
        for name, value in arguments.items()
        if _is_number(value) or (value == AUTO and _bare(name) in AUTO_BOUNDS)
    }
    chosen = list(only) if only is not None else _by_default(numbers, kinds)
    chosen += [name for name in given if name not in chosen]
    # Where there is no value there may be bounds.
    numbers |= {name: None for name in given if name in arguments and arguments[name] is None}
    return list(_dimensions(chosen, numbers, given, kinds, by_name=only is not None))


def _by_default(numbers: Mapping[str, Any], kinds: Mapping[str, type[Any]]) -> list[str]:
    order = list(FACTORS)
    scaled = [name for name in numbers if _bare(name) in FACTORS]
    scaled.sort(key=lambda name: order.index(_bare(name)))
    ruled = [name for name, value in numbers.items() if value == AUTO and name not in scaled]
    return scaled + [name for name in ruled if _of_class(name, kinds) is not None]


def _dimensions(
    chosen: Sequence[str],
    numbers: Mapping[str, Any],
    given: Mapping[str, Sequence[int | float]],
    kinds: Mapping[str, type[Any]],
    *,
    by_name: bool,
) -> Iterator[Dimension]:
    for name in chosen:
        if name not in numbers:
            raise ConfigError(
                f"{name} cannot be searched: the editor's numbers are "
                f"{', '.join(numbers) or 'none'}"
            )
        value, bare = numbers[name], _bare(name)
        if value == AUTO:
            low, high = _bounds(name, given[name]) if name in given else _ruled(name, kinds)
            counts = bare in COUNTS
            if counts:
                low, high = max(1, round(low)), max(1, round(high))
            yield Dimension(name, low, high, AUTO, counts)
            continue
        if name in given:
            low, high = _bounds(name, given[name])
        elif value is None or value <= 0:
            if by_name:
                raise ConfigError(
                    f"{name} is {value}, so there is no range around it; give bounds, such as "
                    f"--space '{{{name}: [0.1, 10]}}'"
                )
            continue
        else:
            down, up = FACTORS.get(bare, (10.0, 10.0))
            low, high = value / down, value * up
            high = min(high, 1.0) if bare in SHARES else high
        own = float(value) if isinstance(value, int | float) else low
        start = min(max(own, low), high)
        if isinstance(value, int):
            low, high, start = max(1, round(low)), max(1, round(high)), round(start)
        yield Dimension(name, low, high, start, isinstance(value, int))


def _ruled(name: str, kinds: Mapping[str, type[Any]]) -> tuple[float, float]:
    return _of_class(name, kinds) or AUTO_BOUNDS[_bare(name)]


def _of_class(name: str, kinds: Mapping[str, type[Any]]) -> tuple[float, float] | None:
    """Return the bounds that a class or its family has for a setting."""
    classes = kinds.get(name, object).__mro__
    named = (f"{cls.__name__}.{_bare(name)}" for cls in classes)
    return next((AUTO_BOUNDS[one] for one in named if one in AUTO_BOUNDS), None)


def _bare(name: str) -> str:
    """Return the name of an argument without the class before it."""
    return name.rpartition(".")[2]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bounds(name: str, bounds: Sequence[int | float]) -> tuple[float, float]:
    if len(bounds) != 2 or not all(map(_is_number, bounds)) or not 0 < bounds[0] <= bounds[1]:
        raise ConfigError(
            f"--space: {name} takes its smallest and its largest value, above zero, such as "
            f"[0.1, 10]; got {list(bounds)}"
        )
    return float(bounds[0]), float(bounds[1])
