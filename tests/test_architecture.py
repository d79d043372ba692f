"""The tree of rooms is what docs/architecture.md says, and imports point down."""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lightning_edit"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MAP, FLOORS = re.findall(r"^```text\n(.*?)^```", PAGE.partition("## 2.")[2], re.M | re.S)[:2]
#: Packages whose public names are loaded when they are used.
LAZY = {"__init__.py", "datamodules/__init__.py", "report/__init__.py"}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE), ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the rooms that a module imports, also inside functions, not for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from imported(other)
            continue
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
        else:
            names = []
        for name in names:
            package, _, rest = name.partition(".")
            if package == "lightning_edit":
                room = rest.partition(".")[0]
                inside = (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists()
                yield room if rest and inside else "__init__"
        yield from imported(child)


@functools.cache
def graph() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path, tree in sources():
        room = room_of(path)
        # The lazy table of public names is the one way up, see the page.
        found.setdefault(room, set()).update(set(imported(tree)) - {room, "__init__"})
    return found


@functools.cache
def floor(room: str, above: tuple[str, ...] = ()) -> int:
    assert room not in above, f"a circle: {' → '.join([*above, room])}"
    return 1 + max((floor(one, (*above, room)) for one in graph()[room]), default=0)


def described() -> dict[str, tuple[str, list[str]]]:
    """Return what the page's map says: purpose and modules of each room, by path."""
    found, room = {}, ""
    for line in MAP.splitlines():
        match = re.match(r"(  |    )(\w+)(/|\.py)\s+(.*)", line)
        if match is None:
            continue
        indent, name, kind, text = match.groups()
        room = name if len(indent) == 2 else room
        path = name + (kind if kind == ".py" else "")
        path = path if len(indent) == 2 else f"{room}/{path}"
        _, colon, listed = text.rpartition(": ")
        found[path] = (text, listed.split(" · ") if colon and kind == "/" else [])
    return found


def children(folder: Path) -> set[str]:
    """Return the modules and packages in a folder, without its ``__init__``."""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return modules | packages


def test_the_map_names_every_room_and_no_other() -> None:
    page = {path.removesuffix(".py") for path in described() if "/" not in path}
    assert page == children(PACKAGE) | {"__init__"}
    assert page == graph().keys()


def test_the_map_lists_the_modules_that_are_there() -> None:
    for path, (_, listed) in described().items():
        if listed:
            assert set(listed) == children(PACKAGE / path), path
            assert len(set(listed)) == len(listed), path


def test_the_page_names_what_exists() -> None:
    folders = "|".join([*graph(), "tests", "docs", "benchmarks", "configs"])
    names = re.findall(rf"`((?:lightning_edit/)?(?:{folders})/[\w/.]*)`", PAGE)
    assert len(names) > 20
    for name in names:
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), name


def test_tests_mirror_the_tree() -> None:
    for folder in (ROOT / "tests").rglob("*/"):
        if folder.name != "__pycache__" and any(folder.glob("test_*.py")):
            inside = PACKAGE / folder.relative_to(ROOT / "tests")
            assert inside.is_dir(), f"{folder}: no such room"


def test_rooms_floors_and_arrows_are_few() -> None:
    arrows = [(room, one) for room, below in graph().items() for one in below]
    assert len(graph()) <= 25
    assert max(floor(room) for room in graph()) <= 11
    assert len(arrows) <= 140


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_page_has_the_floors_of_the_contract() -> None:
    import tomllib

    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (contract,) = tools["importlinter"]["contracts"]
    layers = [line.replace(" | ", " · ") for line in contract["layers"]]
    assert layers == FLOORS.splitlines()
    height = {room: -number for number, line in enumerate(layers) for room in line.split(" · ")}
    # The root's own table of names is the one arrow upwards; nothing imports the root.
    assert height.keys() == graph().keys() - {"__init__"}
    assert graph()["__init__"] == set()
    upward = [(a, b) for a, below in graph().items() for b in below if height[a] <= height[b]]
    assert upward == []


def test_modules_are_imported_by_name() -> None:
    by_string = {
        str(path)
        for path, tree in sources()
        if re.search(r"\b(import_module|__import__)\b", ast.unparse(tree))
    }
    assert by_string == LAZY


def test_one_module_registers_hooks_and_one_replaces_files() -> None:
    hooks, files = set(), set()
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("register_forward"):
                hooks.add(str(path))
            if isinstance(node, ast.Attribute) and node.attr == "fsync":
                files.add(str(path))
    assert hooks == {"inference/hooks.py"}
    assert files == {"storage/atomic.py", "storage/jsonl.py"}
