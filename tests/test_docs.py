"""What is generated is current."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_methods_are_those_of_the_classes() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    remedy = "run `python docs/generate.py`"
    assert (ROOT / "docs" / "methods.md").read_text() == generate.page(), remedy
    assert (ROOT / "README.md").read_text() == generate.readme(), remedy
