"""Docstrings without the roles of another documentation tool: ``:class:`~a.b.C``` reads ``C``.

An extension of griffe (``extensions`` of mkdocstrings in mkdocs.yml).
"""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(\w+):`([^`]+)`")


def plain(match: re.Match[str]) -> str:
    """Return a role's text as code; of a name that begins with ``~`` the last part."""
    text = match[2]
    return f"`{text.rpartition('.')[2] if text.startswith('~') else text}`"


class PlainRoles(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = ROLE.sub(plain, obj.docstring.value)
