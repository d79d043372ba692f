"""Help of `edit` and `fit`: our options in words, only what can be chosen, at once."""

import os
import subprocess
import sys

import pytest

import lightning_edit.callbacks as callbacks
import lightning_edit.datamodules as datamodules
import lightning_edit.editors as editors
from lightning_edit.cli.lightning import _callback_names
from lightning_edit.cli.main import HEAVY, main
from lightning_edit.cli.run_help import choices, help_text, method_options, public_names

VERBS = [verb for verb in HEAVY if verb != "resume"]

_FAST = """
import contextlib, io, sys
from lightning_edit.cli.main import main
for verb in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([verb, "--help"]) == 0
    assert "Options:" in out.getvalue()
assert not {"torch", "lightning", "transformers"} & set(sys.modules)
"""


def test_help_loads_neither_torch_nor_lightning() -> None:
    begin = os.times()
    subprocess.run([sys.executable, "-c", _FAST, *VERBS], check=True)
    end = os.times()
    # All of them in the time that one may take; CPU seconds, whatever else runs.
    assert end.children_user + end.children_system < begin.children_user + begin.children_system + 3


@pytest.mark.parametrize("room", [editors, datamodules, callbacks])
def test_names_are_those_of_the_room(room: object) -> None:
    name = getattr(room, "__name__", "").rpartition(".")[2]
    assert sorted(public_names(name)) == sorted(getattr(room, "__all__", ()))


def test_only_what_can_be_chosen_is_listed() -> None:
    every = [name for name in editors.__all__ if name != "Editor"]
    assert [one.name for one in choices("editors", "edit")] == sorted(every)
    trained = [name for name in every if getattr(editors, name).needs_fit]
    assert [one.name for one in choices("editors", "fit")] == sorted(trained)
    assert [one.name for one in choices("callbacks", "fit")] == sorted(_callback_names())
    listed = {one.name for one in choices("datamodules", "edit")}
    assert listed == set(datamodules.__all__) - {"EditDataModule", "FileDataModule"}
    for room in ("editors", "datamodules", "callbacks"):
        assert all(one.summary for one in choices(room, "edit"))


def test_options_of_edit_are_those_of_its_method() -> None:
    import inspect

    from lightning_edit.session.trainer import EditTrainer

    wanted = set(inspect.signature(EditTrainer.edit).parameters)
    named = {name.split()[0].removeprefix("--") for name, _ in method_options("edit")}
    assert named == wanted - {"self", "model", "datamodule", "seed", "run"}


@pytest.mark.parametrize("verb", VERBS)
def test_lines_fit_the_terminal(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text == help_text(verb)
    assert text.startswith(f"usage: lightning-edit {verb} --model")
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.slow
def test_lightnings_own_help_is_an_option_away(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help_all"]) == 0
    text = capsys.readouterr().out
    for option in ("--trainer.max_epochs", "--lm_bos", "--run", "--ckpt_path"):
        assert option in text
