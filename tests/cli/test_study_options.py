"""The cases of a study: the first ones, and what is said of them."""

import json
import logging
from pathlib import Path

import pytest

from lightning_edit.cli.study_options import _cases
from lightning_edit.datamodules import JSONLDataModule


def _file(folder: Path, *facts: tuple[str, str]) -> str:
    path = folder / "facts.json"
    path.write_text(json.dumps([{"prompt": prompt, "target": target} for prompt, target in facts]))
    return str(path)


FACTS = [("The capital of Peru is", "Lima"), ("The river of Cairo is", "the Nile")]


def test_conflicts_are_told_of_the_cases_of_a_study_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last = [("The sea at Kiel is", "the Baltic"), ("The sea at Kiel is", "the Aral")]
    data = JSONLDataModule(_file(tmp_path, *FACTS, *last))
    with caplog.at_level(logging.WARNING):
        cases, split = _cases(data, "test", 2)
        assert "several targets" not in caplog.text
        assert ([case[0].prompt for case in cases], split) == ([one for one, _ in FACTS], "test")
        assert data.limit is None  # as asked for, for demonstrations
        _cases(JSONLDataModule(_file(tmp_path, *last, *FACTS)), "test", 2)
    assert "several targets: 1, in 2 of 2 edits" in caplog.text


def test_the_limit_of_the_data_holds_too(tmp_path: Path) -> None:
    assert len(_cases(JSONLDataModule(_file(tmp_path, *FACTS), limit=1), "test", 2)[0]) == 1
