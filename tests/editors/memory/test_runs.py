"""Runs of memory editors on disk: a run that was cut goes on to the same results."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_edit import EditTrainer
from lightning_edit.editors import GRACE, MELO, MEMOIR, WISE, Editor
from lightning_edit.edits.delta import Delta
from lightning_edit.types import EditBatch
from tests.toy import ToyData, toy_model, toy_tokenizer

TEMPLATES = ["{}", "the city . {}"]
ARGUMENTS: dict[type[Editor], dict[str, Any]] = {
    GRACE: {"layer": 0, "steps": 5},
    WISE: {"layer": 0, "steps": 4, "templates": TEMPLATES, "shard_size": 2, "lr": 0.3},
    MEMOIR: {"layer": 0, "steps": 4, "templates": TEMPLATES},
    MELO: {"index_layer": 0, "layers": [1], "steps": 5},
}


def run(editor: type[Editor], folder: Path, fail_at: str | None = None, **arguments: Any) -> Any:
    own = editor(**ARGUMENTS[editor])
    learn = own.learn  # type: ignore[attr-defined]

    def planted(part: EditBatch, memory: Any) -> Delta:
        if fail_at in part.ids:
            raise RuntimeError("planted")
        found: Delta = learn(part, memory)
        return found

    own.learn = planted  # type: ignore[attr-defined]
    own.bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.edit(own, ToyData(6), run=str(folder), checkpoint_every=2, **arguments)
    cases = (folder / "cases.jsonl").read_text()
    return cases, json.loads((folder / "results.json").read_text())["points"]


@pytest.mark.parametrize("editor", ARGUMENTS, ids=lambda one: one.__name__)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    editor: type[Editor], tmp_path: Path
) -> None:
    whole = run(editor, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="planted"):
        run(editor, tmp_path / "cut", fail_at="fact-3")
    cases, points = run(editor, tmp_path / "cut", ckpt_path="last")
    assert cases == whole[0]
    assert [point["after"] for point in points] == [point["after"] for point in whole[1]]
    for name in ("000005.safetensors", "000006.safetensors"):
        files = [next((tmp_path / kind / "ledger").rglob(f"*{name}")) for kind in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()
