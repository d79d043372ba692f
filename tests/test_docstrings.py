"""Docstrings: no paragraph broken in mid-sentence, and first lines that can be searched."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WIDTH = 100
#: A line may be so much shorter than the next word would allow: whoever writes by hand counts less
#: exactly than a formatter.
_SLACK = 4
#: Beginnings of lines that are no prose: lists, doctests, tables, directives, formulas.
_OWN_LINE = re.compile(r"\*|-|>>>|\.\.\.|\||:|\d+\.|=|\$|`\w+=|Run:|python |\"\"\"")
_SECTION = re.compile(r"(Args|Returns|Raises|Yields|Note|Example|Attributes|Run):?$")
_ENTRY = re.compile(r"\*{0,2}\w[\w.*, ]*( \([^)]*\))?: ")


def sources() -> list[Path]:
    return sorted(
        path
        for room in ("lightning_edit", "tests", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    )


def docstrings(source: str) -> Iterator[tuple[int, list[str], ast.AST]]:
    """Yield the first line's number, the lines and the owner of every docstring."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            assert text.end_lineno is not None
            yield text.lineno, lines[text.lineno - 1 : text.end_lineno], node


def broken_wraps(source: str) -> list[tuple[int, str]]:
    """Return lines that end although the next line's first word had fitted, with their numbers."""
    found = []
    for first, lines, _ in docstrings(source):
        literal = doctest = False
        for number, (line, after) in enumerate(pairwise(lines)):
            own, following = line.strip(), after.strip()
            indent, next_indent = (len(one) - len(one.lstrip()) for one in (line, after))
            if own.endswith("::"):
                literal = True
            elif own and literal and indent == len(lines[0]) - len(lines[0].lstrip()):
                literal = False
            # What a doctest prints goes on to the next blank line.
            doctest = bool(own) and (doctest or own.startswith(">>>"))
            if literal or doctest or not own or not following or next_indent < indent:
                continue
            if _OWN_LINE.match(following) or own.startswith((">>>", "...", "|", "Run:", "python ")):
                continue
            if _SECTION.match(own) or (_ENTRY.match(following) and next_indent == indent):
                continue
            # The last line may carry the closing quotes of a docstring of one paragraph.
            word = following.split()[0].removesuffix('"""')
            if word and len(line.rstrip()) + 1 + len(word) <= WIDTH - _SLACK:
                found.append((first + number, own))
    return found


def test_a_paragraph_that_is_broken_in_mid_sentence_is_found() -> None:
    whole = '"""One.\n\nIt never changes the model, and says so here at some length.\n"""'
    assert broken_wraps(whole) == []
    assert broken_wraps(whole.replace("changes the", "changes\nthe")) == [(3, "It never changes")]
    listed = '"""One.\n\nArgs:\n    a: First.\n    b: Second.\n\n* one\n* two\n"""'
    assert broken_wraps(listed) == []
    assert (
        broken_wraps('"""One.\n\n>>> torch.eye(2)\ntensor([[1., 0.],\n        [0., 1.]])\n"""')
        == []
    )


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_paragraph_is_broken_in_mid_sentence(path: Path) -> None:
    broken = broken_wraps(path.read_text())
    assert not broken, "join these lines with the next one: " + "; ".join(
        f"{path.relative_to(ROOT)}:{number} {line!r}" for number, line in broken
    )
