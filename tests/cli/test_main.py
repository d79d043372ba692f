"""The command line's front door."""

import subprocess
import sys

import pytest

import lightning_edit
from lightning_edit.cli.main import HEAVY, LIGHT, main

_LIGHT_HELP = """
import contextlib, io, sys, time
from lightning_edit.cli.main import LIGHT, main
for arguments in [["--help"], *([verb, "--help"] for verb in LIGHT)]:
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(arguments) == 0, arguments
    assert "usage" in out.getvalue(), arguments
    heavy = {"torch", "lightning", "transformers", "datasets", "peft"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""


def test_help_and_every_light_verb_load_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", _LIGHT_HELP], check=True)


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for verb in [*HEAVY, *LIGHT]:
        assert f"  {verb} " in text


def test_mistyped_verb_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exprot"]) == 2
    assert "did you mean export?" in capsys.readouterr().err


def test_mistyped_editor_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", "--model", "MEMITT", "--data", "AtlasDataModule"]) == 2
    error = capsys.readouterr().err
    assert "did you mean MEMIT?" in error
    assert "ROME" in error


def test_resume_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "no/such/folder"]) == 2
    assert "made by `edit`" in capsys.readouterr().err


def test_public_names_exist() -> None:
    for name in lightning_edit.__all__:
        assert getattr(lightning_edit, name).__name__ == name


def test_fit_refuses_what_needs_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.statistics", "identity", "--trainer.fast_dev_run", "1"]
    assert main(["fit", "--model", "ROME", "--data", "AtlasDataModule", *options]) == 2
    assert "run `lightning-edit edit`" in capsys.readouterr().err


def test_public_names_are_those_of_the_rooms() -> None:
    import lightning_edit.callbacks as callbacks
    import lightning_edit.datamodules as datamodules
    import lightning_edit.editors as editors

    values = {"Commit", "EvalContext", "Measurement", "Measuring", "Moment"}
    for room in (callbacks, datamodules, editors):
        for name in set(room.__all__) - values:
            assert getattr(lightning_edit, name) is getattr(room, name)
            assert name in dir(lightning_edit)
            assert name in lightning_edit.__all__
    with pytest.raises(AttributeError, match="no attribute 'MEMITT'; did you mean MEMIT"):
        _ = lightning_edit.MEMITT
