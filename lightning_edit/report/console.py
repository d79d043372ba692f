"""Console of rich for texts of data: they are shown, and the terminal obeys nothing in them."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from lightning_edit.functional.visible import visible


class VisibleConsole(Console):
    """Console of rich that escapes control characters in whatever it prints.

    Its own colours and cursor movements are segments of another kind, and stay.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.push_render_hook(_Escape())


class _Escape(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(one) for one in renderables]


class _Escaped:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        segments: Iterable[Segment] = console.render(self._inner, options)
        for text, style, control in segments:
            yield Segment(text if control else visible(text), style, control)
