"""Files of options are bounded: aliases that stand for billions of values are refused at once."""

import os
import time
from pathlib import Path

import pytest

from lightning_edit.cli.main import main
from lightning_edit.exceptions import ConfigError
from lightning_edit.storage.yaml_files import read_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "stand for more than 100,000 values"),
        ("- model: ROME\n", "names and values .*got a list"),
        ("just words", "got a single value"),
        ("a: [1", "not YAML"),
        ("a: \x00", "not YAML"),
        ("a: &a [*a]", "deep"),
        ("a: " + "[" * 3000, "not YAML|deep"),
        ("a: !!python/object/apply:os.system [ls]", "constructor"),
    ],
    ids=["laughs", "list", "scalar", "open", "nul", "self", "deep", "object"],
)
def test_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=words) as caught:
        read_yaml(path)
    assert time.monotonic() - begin < 5
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name, words in (
        ("pipe", "got a pipe"), (".", "got a folder"), ("none", "no such file"),
        ("a\0b", "no file of text"), ("bytes", "no file of text in UTF-8"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            read_yaml(tmp_path / name)


def test_ordinary_options(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("common: &c {lr: 0.1}\nmodel: *c\nname: Århus\n")
    assert read_yaml(path) == {"common": {"lr": 0.1}, "model": {"lr": 0.1}, "name": "Århus"}
    path.write_text("# nothing\n")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "--config", "{}"],
        ["edit", "--model={}"],
        ["sweep", "-c", "{}"],
        ["benchmark", "{}"],
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_verbs_answer_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(LAUGHS)
    assert main([one.format(path) for one in arguments]) == 2
    assert "stand for more than 100,000 values" in capsys.readouterr().err
