"""Write docs/methods.md, and the table of editors in the README, from the classes themselves.

Run:  python docs/generate.py
"""

import inspect
from pathlib import Path

import lightning_edit.editors as editors
from lightning_edit.editors.base import Editor

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
BEGIN, END = "<!-- editors: made by docs/generate.py -->", "<!-- end of editors -->"
FLAGS = {
    "needs_statistics": "key statistics (`lightning-edit stats`)",
    "needs_fit": "training (`lightning-edit fit`)",
    "needs_subject": "a subject in every request",
}


def finals() -> list[type[Editor]]:
    """Return the editors that can be used by themselves, by name."""
    listed = [getattr(editors, name) for name in editors.__all__]
    return sorted((cls for cls in listed if not cls._family), key=lambda cls: cls.__name__.lower())


def summary(cls: type[Editor]) -> str:
    """Return the first sentence of a class."""
    text = (inspect.getdoc(cls) or "").partition("\n")[0]
    return text.rstrip(".")


def paper(cls: type[Editor]) -> str:
    """Return the source that a class's module names in its first line."""
    text = inspect.getdoc(inspect.getmodule(cls)) or ""
    return " ".join(text.partition("\n\n")[0].split()).rstrip(".")


def needs(cls: type[Editor]) -> str:
    """Return what must be there before an edit."""
    return "; ".join(text for flag, text in FLAGS.items() if getattr(cls, flag)) or "nothing"


def stacks(cls: type[Editor]) -> str:
    """Return which stacks of an encoder-decoder model are edited by default."""
    able = "encoder-decoder" in cls.architectures and bool(cls.default_layers(5))
    return f" (of two stacks by default the {' and the '.join(cls.stacks)})" if able else ""


def table() -> str:
    """Return the short table of the README."""
    rows = [f"| `{cls.__name__}` | {summary(cls)} | {needs(cls)} |" for cls in finals()]
    return "\n".join(["| `--model` | what it does | needs |", "|---|---|---|", *rows])


def page() -> str:
    """Return docs/methods.md."""
    lines = [
        "# Editors",
        "",
        "Made from the classes by `python docs/generate.py`.",
        "",
        table(),
        "",
    ]
    for cls in finals():
        layers = {blocks: cls.default_layers(blocks) for blocks in (5, 12, 28, 32, 48)}
        lines += [
            f"## {cls.__name__}",
            "",
            f"{summary(cls)}. Source: {paper(cls)}.",
            "",
            f"- written together: {'yes' if cls.batched else 'no, one request after another'}",
            f"- models: {', '.join(cls.architectures)}{stacks(cls)}",
            f"- needs: {needs(cls)}",
        ]
        if any(layers.values()):
            listed = ", ".join(f"{of}: {blocks}" for of, blocks in layers.items())
            lines.append(f"- default blocks, by depth of the model: {listed}")
        lines.append("")
    return "\n".join(lines)


def readme() -> str:
    """Return the README with its table made anew."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    """Write both."""
    (DOCS / "methods.md").write_text(page())
    README.write_text(readme())


if __name__ == "__main__":
    main()
