"""Callbacks on the command line: bare names, mistyped ones, and the table at the end."""

import json
from pathlib import Path

import pytest

from lightning_edit.__main__ import main
from lightning_edit.cli.lightning import check_names
from lightning_edit.exceptions import ConfigError

EDIT = ["edit", "--model", "FTL", "--data", "AtlasDataModule", "--data.limit", "1"]


def test_a_mistyped_callback_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean DriftCallback"):
        check_names([*EDIT, "--trainer.callbacks+=DriftCalback"])
    check_names([*EDIT, "--trainer.callbacks+=ModelCheckpoint"])
    check_names([*EDIT, "--trainer.callbacks+", "my.project.Watch"])


@pytest.mark.slow
def test_callbacks_by_bare_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    names = ("DriftCallback", "CollapseCallback", "EfficiencyCallback", "CollapseGuard")
    arguments = [f"--trainer.callbacks+={name}" for name in names]
    assert main([*EDIT, *arguments, "--modes", "[tf]", "--run", str(run)]) == 0
    text = capsys.readouterr().out
    for words in ("Beside the probes", "Perplexity on held text", "Peak memory of the process"):
        assert words in text
    assert max(map(len, text.splitlines()[:-1])) <= 80
    metrics = json.loads((run / "results.json").read_text())["points"][-1]["metrics"]
    groups = {name.split("/")[0].split(".")[0] for name in metrics}
    assert {"drift", "collapse", "efficiency"} <= groups
