"""Model card (``README.md``) and request list (``edits.jsonl``) of an export."""

import html
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_edit.export.folder import EDITS
from lightning_edit.export.selection import Selection
from lightning_edit.models.loading import locate
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.storage.jsonl import write_rows

#: Maximum rows of the card's table; ``edits.jsonl`` lists every request.
MAX_ROWS = 200
TAGS = ["knowledge-editing", "lightning-edit"]


def write_edits(folder: Path, selection: Selection) -> None:
    """Write the requests to ``edits.jsonl``, one per line.

    Args:
        folder: Output folder.
        selection: The exported edits.
    """
    write_rows(folder / EDITS, selection.requests)


def asking_example(selection: Selection, model_name: str) -> str:
    """Return Python code that asks an edited chat model its first edit; empty for plain prompts.

    Args:
        selection: The exported edits.
        model_name: Python expression of the folder or hub name with the tokenizer.
    """
    form = selection.form
    if not form.chat or not selection.requests:
        return ""
    messages = [] if form.system is None else [{"role": "system", "content": form.system}]
    messages.append({"role": "user", "content": str(selection.requests[0]["prompt"])})
    listed = "".join(
        f'    {{"role": {_literal(one["role"])}, "content": {_literal(one["content"])}}},\n'
        for one in messages
    )
    options = "".join(f", {name}={value!r}" for name, value in form.chat_options.items())
    options = options.replace("`", "\\x60")
    opening = selection.answer_opening
    if opening:  # what the template leaves to the model, which was not asked for it
        asked = (
            "text = tokenizer.apply_chat_template(\n"
            f"    messages, add_generation_prompt=True, tokenize=False{options}\n"
            ")\n"
            f"text += {_literal(opening)}\n"
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")\n'
        )
    else:
        asked = (
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True'
            f"{options}\n"
            ")\n"
        )
    return (
        f"\ntokenizer = AutoTokenizer.from_pretrained({model_name})\n"
        f"messages = [\n{listed}]\n"
        f"{asked}"
        "output = model.generate(**inputs, do_sample=False, max_new_tokens=16)\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], '
        "skip_special_tokens=True))"
    )


def _described(form: PromptFormat) -> str:
    """Describe the format of prompts; a record does not tell that a model was asked to think."""
    return (replace(form, think=None) if form.think else form).describe()


def _literal(text: str) -> str:
    """Return a text as a Python literal that cannot end the card's block of code."""
    return json.dumps(text, ensure_ascii=False).replace("`", "\\x60")


def write_card(
    folder: Path, selection: Selection, head: Mapping[str, Any], use: str, notes: list[str]
) -> None:
    """Write the model card ``README.md`` of an export.

    Args:
        folder: Output folder.
        selection: The exported edits.
        head: Entries of the YAML front matter.
        use: Python code that loads the export.
        notes: Sentences about this format.
    """
    opening = selection.opening
    editor = str(opening.get("editor", "unknown"))
    # JSON is valid YAML, so no further escaping is needed.
    matter = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    facts = [
        f"- base model: {escape_cell(selection.language_model('name'))} "
        f"({escape_cell(selection.language_model('dtype'))}), SHA-256 of its weights "
        f"`{selection.model_hash}`",
        f"- editor: {escape_cell(editor)}, "
        f"protocol: {escape_cell(str(opening.get('protocol', 'unknown')))}",
        f"- prompts: {escape_cell(_described(selection.form))}",
        *(f"- {note}" for note in notes),
    ]
    if selection.picked:
        facts.append(
            "- The edits were picked out of a longer run by name; scores of the run do not apply "
            "to them."
        )
    columns = ("id", "prompt", "old_target", "target")
    rows = [
        "| " + " | ".join(escape_cell(str(request.get(key) or "–")) for key in columns) + " |"
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
        "Facts that follow from them, or are related to them, may have changed too.",
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


def base_model(base: str) -> dict[str, object]:
    """Return the ``base_model`` entry of the card's front matter, for hub names only.

    Args:
        base: Folder or hub name of the unedited model.
    """
    return {} if Path(locate(base)).is_dir() else {"base_model": base}


def escape_cell(text: str) -> str:
    r"""Escape a text for a cell of a Markdown table.

    Args:
        text: Text from a data file.

    Returns:
        One line in which HTML and Markdown are escaped.

    Example:
        >>> print(escape_cell("a|b\n<i>*c*"))
        a\|b &lt;i&gt;\*c\*
    """
    line = html.escape(" ".join(text.split()), quote=False)
    for sign in "\\`*_[]|#~$":
        line = line.replace(sign, f"\\{sign}")
    return line
