"""Errors of the argument parser: the option, what was expected, and what was given."""

import pytest

from lightning_edit.__main__ import main

MODEL = ["--lm", "atlas", "--data", "AtlasDataModule"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["edit", "--model", "FTM", "--model.lr", "atuo"],
            "--model.lr: expected a number or auto, got atuo",
        ),
        (
            ["edit", "--model", "OneLI", "--model.editor", "FTM", "--model.editor.steps", "2.5"],
            "--model.editor.steps: expected a whole number or auto, got 2.5",
        ),
        (
            ["tune", "FT", "--model.objective", "foo"],
            "--model.objective: expected prompt_last or target_new, got foo",
        ),
        (["tune", "FTM", "--facts", "x"], "--facts: expected a whole number, got x"),
        (["tune", "FTM", "--only", "lr"], "--only: expected a list, such as '[1, 2]', got lr"),
        (
            ["tune", "FTM", "--space", "{lr:[1e-4]}"],
            "--space: expected a mapping, such as '{name: value}', got {lr:[1e-4]}",
        ),
        (
            ["tune", "FTM", "--lm_chat", "maybe"],
            "--lm_chat: expected true or false or both, got maybe",
        ),
        (["tune", "FTM", "--data.limit", "foo"], "--data.limit: expected a whole number, got foo"),
        (["tune", "FTM", "--model.rate", "1"], "--model: Option 'rate' is not accepted"),
        (
            ["tune", "FTM", "--data", "JSONLDataModule"],
            "--data: the following arguments are required: path",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_option(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *rest = arguments
    method = rest[:1] if not rest[0].startswith("-") else rest[:2]
    assert main([verb, *method, *MODEL, *rest[len(method) :]]) == 2
    assert f"lightning-edit {verb}: {message}. `--help` lists" in capsys.readouterr().err
