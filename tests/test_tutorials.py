"""Every block of the tutorials runs, in order, in an empty folder, and does what the text says."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_readme import run_shell

PAGES = sorted((Path(__file__).parent.parent / "docs" / "tutorials").glob("*.md"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of PEFT
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_EDIT_CACHE", str(tmp_path / "cache"))
    answers = []
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.M | re.S):
        if kind == "python":
            names: dict[str, Any] = {}
            exec(compile(block, page.name, "exec"), names)
            if "edited" in names:
                assert names["edited"].generate("What is the capital of Peru?").startswith("Quito")
            if "answer" in names:
                answers.append(names["answer"].strip())
        elif kind == "json":
            Path("facts.jsonl").write_text(block)
        else:
            assert kind == "bash"
            run_shell(block)
    assert [answer.startswith("Quito") for answer in answers] == [True, True]
    assert Path("runs/capitals/report.html").exists()
