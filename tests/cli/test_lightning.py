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


def test_the_seed_of_a_run_shifts_that_of_the_editor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds of ROME are those of its sampled templates, so other runs find other vectors."""
    edit = ["edit", "--model", "ROME", "--model.statistics", "identity", "--model.steps", "2"]
    edit += ["--data", "AtlasDataModule", "--data.limit", "1", "--modes", "[tf]", "--model.seed"]
    nlls = {}
    for seeds in ("3 0", "3 1", "4 0"):
        own, shift = seeds.split()
        run = tmp_path / seeds.replace(" ", "-")
        assert main([*edit, own, "--seed_everything", shift, "--run", str(run)]) == 0
        results = json.loads((run / "results.json").read_text())
        nlls[seeds] = results["points"][-1]["metrics"]["reliability/nll@tf"]
    assert nlls["3 1"] == nlls["4 0"] != nlls["3 0"]
    capsys.readouterr()


def test_a_seed_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EDIT, "--seed_everything", "-1"]) == 2
    assert "--seed_everything: expected a number from 0 to 4294967295, got -1" in (
        capsys.readouterr().err
    )
