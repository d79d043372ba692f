"""Pages of the site that are made of files outside ``docs``: README, CONTRIBUTING, results and API.

A hook of MkDocs (``hooks`` in mkdocs.yml).
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
WHOLE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
LINKS = {"docs/": "", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
#: Pages of the API: their public modules, as the package itself lists them.
API = {
    "editors": ("Editors", ("editors",)),
    "datamodules": ("Data modules", ("datamodules",)),
    "callbacks": ("Callbacks", ("callbacks",)),
    "sessions": ("Sessions and edits", ()),
}
RESULTS = re.compile(r"\]\(\.\./(benchmarks/results/[\w.-]+)\)")


def public_names() -> dict[str, list[str]]:
    """Return the public names by module, without importing the package."""
    tree = ast.parse((ROOT / "lightning_edit" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "_NAMES":
            assert node.value is not None
            names: dict[str, str] = ast.literal_eval(node.value)
            return {module: text.split() for module, text in names.items()}
    raise LookupError("lightning_edit/__init__.py no longer lists its names in _NAMES")


def api_page(title: str, modules: tuple[str, ...], names: dict[str, list[str]]) -> str:
    """Return a page that documents the public names of some modules."""
    apart = {module for _, listed in API.values() for module in listed}
    chosen = modules or tuple(module for module in names if module not in apart)
    lines = [f"# {title}", ""]
    for module in chosen:
        for name in names[module]:
            lines += [f"::: lightning_edit.{module}.{name}"]
            # The verbs are the base class's; of an editor its arguments are what differs.
            own = module != "editors" or name == "Editor"
            lines += [] if own else ["    options: {members: false}"]
            lines += [""]
    return "\n".join(lines)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages whose text is not in ``docs``."""
    for source, page in WHOLE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = text.replace("](docs/", "](").replace("](CONTRIBUTING.md)", "](contributing.md)")
        files.append(
            File.generated(config, page, content=text.replace("](README.md", "](index.md"))
        )
    names = public_names()
    for page, (title, modules) in API.items():
        content = api_page(title, modules, names)
        files.append(File.generated(config, f"api/{page}.md", content=content))
    linked = {
        path
        for page in (ROOT / "docs").rglob("*.md")
        for path in RESULTS.findall(page.read_text(encoding="utf-8"))
    }
    for path in sorted(linked):
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, f"results/{Path(path).name}", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to committed results lead to their copies on the site."""
    return RESULTS.sub(lambda match: f"](results/{Path(match[1]).name})", markdown)
