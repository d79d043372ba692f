"""Every block of the README runs, in order, in an empty folder."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.__main__ import main
from lightning_edit.models.loading import load_language_model

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
#: Blocks of set-up commands; `.ci/run` and the Makefile are those commands themselves.
SETUP = "console"


def run_shell(block: str) -> None:
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "lightning-edit", line
        arguments = words[1:]
        if arguments[0] == "fit":
            # The whole recipe takes minutes; `benchmarks/quality/mend_atlas.py` runs it.
            arguments += ["--trainer.fast_dev_run", "2"]
        assert main(arguments) == 0, line


def save_chat_model(folder: Path) -> None:
    """Save the embedded model with a chat template, in the place of the README's instruct model."""
    model, tokenizer = load_language_model("atlas")
    turns = "{% for m in messages %}{{ m.content }} {% endfor %}"
    tokenizer.chat_template = "{{ bos_token }}" + turns
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    save_chat_model(Path("path/to/instruct-model"))
    kinds = [kind for kind, _ in BLOCKS]
    assert {"python", "bash", "json"} <= set(kinds)
    for kind, block in BLOCKS:
        if kind == "python":
            names: dict[str, Any] = {}
            exec(compile(block, "README.md", "exec"), names)
            if "chat=True" in block:
                assert names["edited"].generate(names["fact"]["prompt"]).startswith("Oslo")
            if "load_edited" in block:
                assert names["edited"].generate(names["fact"]["prompt"]).startswith("Oslo")
                assert names["edited"].undo().generate(names["fact"]["prompt"]).startswith("Paris")
        elif kind == "json":
            Path("facts.jsonl").write_text(block)
        elif kind == "bash":
            run_shell(block)
        else:
            assert kind == SETUP
