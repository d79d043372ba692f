"""Every YAML under configs/ runs: a configuration that is not run does not exist."""

import shutil
from pathlib import Path

import pytest
import yaml

from lightning_edit.__main__ import main

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def command(path: Path) -> list[str]:
    """Return a short run of a configuration, by what it holds."""
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "method":
        # One editor with its values: the smallest run that uses it.
        data = ["--data", "AtlasDataModule", "--data.limit", "2", "--modes", "[tf]"]
        return ["edit", "--config", str(path), *data]
    if "protocol" in content:
        return ["edit", "--config", str(path), "--data.limit", "2", "--modes", "[tf]"]
    return ["fit", "--config", str(path), "--trainer.fast_dev_run", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    assert main(command(path)) == 0
