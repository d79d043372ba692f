"""What a search over settings may choose: layers among windows, and numbers within bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_edit.analysis.tuning.search import Settings
from lightning_edit.analysis.tuning.space import Dimension, search_space

LAYERS = "layers"
"""Name of the argument with the edited layers."""


@dataclass(frozen=True)
class Choices:
    """The searched settings of an editor.

    Args:
        space: Searched numbers; the layers are one of them, as a place in ``windows``.
        windows: Choices of layers; empty where layers are not searched.
        own: Layers that the editor edits by itself.
        begins_with_own: Whether the first trial has the editor's own settings: not where bounds
            leave them out.
    """

    space: tuple[Dimension, ...]
    windows: tuple[tuple[int, ...], ...]
    own: tuple[int, ...]
    begins_with_own: bool

    @classmethod
    def of(
        cls,
        arguments: Mapping[str, Any],
        windows: Sequence[Sequence[int]],
        own: Sequence[int],
        given: Mapping[str, Sequence[int | float]] | None = None,
        only: Sequence[str] | None = None,
        kinds: Mapping[str, type[Any]] | None = None,
    ) -> "Choices":
        """Return what is searched around an editor's values.

        Args:
            arguments: The arguments of the editor and its wrappers, with their values.
            windows: Choices of layers; empty if they are not searched.
            own: Layers that the editor edits by itself.
            given: Bounds of a user, by name.
            only: Names of the settings to search; ``None``: all that depend on a model's scale.
            kinds: Class of the editor that has an argument, by name.

        Raises:
            ConfigError: If a name or bounds cannot be searched, see
                :func:`~lightning_edit.analysis.tuning.space.search_space`.
        """
        names = None if only is None else [name for name in only if name != LAYERS]
        space = search_space(arguments, given, names, kinds)
        listed, mine = tuple(map(tuple, windows)), tuple(own)
        at_start = all(one.start == arguments.get(one.name) for one in space)
        if len(listed) > 1:
            start = listed.index(mine) if mine in listed else 0
            space.append(Dimension(LAYERS, 0, len(listed) - 1, start, integer=True, log=False))
        return cls(tuple(space), listed, mine, at_start and (not listed or mine in listed))

    def layers_of(self, proposed: Settings) -> list[int]:
        """Return the layers of proposed settings."""
        if LAYERS in proposed:
            return list(self.windows[int(proposed[LAYERS])])
        return list(self.windows[0] if len(self.windows) == 1 else self.own)

    def numbers_of(self, proposed: Settings) -> Settings:
        """Return proposed settings without the layers."""
        return {name: value for name, value in proposed.items() if name != LAYERS}

    def to_row(self) -> dict[str, Any]:
        """Convert to plain containers for the record of the study."""
        return {
            "space": {one.name: one.to_row() for one in self.space},
            "windows": [list(window) for window in self.windows],
        }
