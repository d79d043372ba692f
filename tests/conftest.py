"""Where the tests find material that is not part of the project."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_path(name: str) -> Path:
    """Return ``name`` ("data/zsre", "golden", "models/gpt2") of the shared material, or skip.

    ``$LIGHTNING_EDIT_DATA``, ``$LIGHTNING_EDIT_GOLDEN`` and ``$LIGHTNING_EDIT_MODELS`` say where
    the three folders are; otherwise they are looked for in ``../shared`` beside the repository.
    """
    folder, _, rest = name.partition("/")
    variable = f"LIGHTNING_EDIT_{folder.upper()}"
    base = Path(os.environ.get(variable) or ROOT.parent / "shared" / folder)
    path = base / rest if rest else base
    if not path.exists():
        pytest.skip(f"{path} is absent; set ${variable} to the folder that holds it")
    return path
