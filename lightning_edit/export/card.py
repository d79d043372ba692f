"""The texts beside an exported edit: the list of requests and a card that says what was done."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_edit.export.folder import EDITS
from lightning_edit.export.selection import Selection
from lightning_edit.storage.jsonl import write_rows

#: Rows of the card's table; ``edits.jsonl`` has all.
MAX_ROWS = 200


def write_edits(folder: Path, selection: Selection) -> None:
    """Write the requests as ``edits.jsonl``, one a line.

    Args:
        folder: Where the file goes.
        selection: What is exported.
    """
    write_rows(folder / EDITS, selection.requests)


def write_card(
    folder: Path, selection: Selection, head: Mapping[str, Any], use: str, notes: list[str]
) -> None:
    """Write ``README.md``, the model card of the edit.

    Args:
        folder: Where the file goes.
        selection: What is exported.
        head: Entries of the card's front matter.
        use: Python lines that load the export.
        notes: Sentences about this format.
    """
    opening = selection.opening
    editor = str(opening.get("editor", "unknown"))
    # JSON is YAML, and its strings need no further care.
    matter = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    facts = [
        f"- base model: {cell(selection.language_model('name'))} "
        f"({cell(selection.language_model('dtype'))}), SHA-256 of its weights "
        f"`{selection.model_hash}`",
        f"- editor: {cell(editor)}, protocol: {cell(str(opening.get('protocol', 'unknown')))}",
        *(f"- {note}" for note in notes),
    ]
    if selection.picked:
        facts.append(
            "- The edits were picked out of a longer run by name; scores of the run do not hold "
            "for them."
        )
    columns = ("id", "prompt", "old_target", "target")
    rows = [
        "| " + " | ".join(cell(str(request.get(key) or "–")) for key in columns) + " |"
        for request in selection.requests[:MAX_ROWS]
    ]
    if (more := len(selection.requests) - MAX_ROWS) > 0:
        rows.append(f"| … | {more} more in `{EDITS}` | | |")
    parts = [
        "---",
        *matter,
        "---",
        "",
        "# An edited language model",
        "",
        f"{len(selection.requests)} facts were written into the base model with lightning-edit. "
        "Facts that follow from them, or stand near them, may have moved too.",
        "",
        *facts,
        "",
        "## Edits",
        "",
        "| id | prompt | before | after |",
        "|---|---|---|---|",
        *rows,
        "",
        "## Use",
        "",
        "```python",
        use,
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def cell(text: str) -> str:
    r"""Make any text safe inside a Markdown table.

    Args:
        text: Text from a data file.

    Returns:
        One line without markup.

    Example:
        >>> print(cell("a|b\n<i>*c*"))
        a\|b &lt;i&gt;\*c\*
    """
    line = html.escape(" ".join(text.split()), quote=False)
    for sign in "\\`*_[]|#~$":
        line = line.replace(sign, f"\\{sign}")
    return line
