"""Scripts under benchmarks/ know everything that the library has."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_resume_matrix_has_settings_for_every_measuring_callback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = ROOT / "benchmarks" / "robustness" / "resume_matrix.py"
    spec = importlib.util.spec_from_file_location("resume_matrix", path)
    assert spec is not None
    assert spec.loader is not None
    matrix = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "resume_matrix", matrix)
    spec.loader.exec_module(matrix)
    assert matrix.callbacks_without_settings() == set()
    asked = {cell.callbacks for cell in matrix.cells(pairs=True)}
    assert asked == {*matrix.CALLBACKS, "all", "none"}
