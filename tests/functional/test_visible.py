"""A terminal shows what data holds, and obeys none of it."""

import io

import pytest
from rich.table import Table
from rich.text import Text

from lightning_edit.functional.visible import visible
from lightning_edit.report.console import VisibleConsole

HOSTILE = "a\x1b[2J\x1b]0;t\x07b\r\x08\u202egnp.exe\u2066\x9bc\u2028"


def test_control_characters_and_directions_are_escaped() -> None:
    shown = visible(HOSTILE)
    assert shown.isprintable()
    assert shown == HOSTILE.encode("unicode_escape").decode().replace("\\r", "\\x0d")


@pytest.mark.parametrize(
    "text",
    ["Zürich → 東京", "line\nnext\ttab", "مرحبا", "שלום", "👩‍🚀 flag 🇫🇷", "क्षि", "[bold]x[/]"],
)
def test_letters_of_every_script_stay(text: str) -> None:
    assert visible(text) == text


def test_a_console_keeps_its_own_colours() -> None:
    out = io.StringIO()
    console = VisibleConsole(file=out, force_terminal=True, width=200, color_system="standard")
    table = Table("column")
    table.add_row(Text(HOSTILE))
    console.print(Text("warning", style="red"), HOSTILE, table, markup=False)
    text = out.getvalue()
    assert "\x1b[31mwarning\x1b[0m" in text
    assert "\\x1b[2J" in text
    for bad in ("\x1b[2J", "\x1b]0", "\x07", "\x08", "\u202e", "\u2066", "\x9b"):
        assert bad not in text
