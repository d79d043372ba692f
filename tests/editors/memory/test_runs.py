"""Runs of memory editors on disk: a run that was cut goes on to the same results."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_edit import EditTrainer
from lightning_edit.editors import GRACE, MELO, MEMOIR, WISE, Editor
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ConfigError, LedgerError
from lightning_edit.types import EditBatch, EditRequest
from tests.toy import ToyData, toy_model, toy_tokenizer

TEMPLATES = ["{}", "the city . {}"]
ARGUMENTS: dict[type[Editor], dict[str, Any]] = {
    GRACE: {"lr": 1.0, "layer": 0, "steps": 20},
    WISE: {"layer": 0, "steps": 4, "templates": TEMPLATES, "shard_size": 2, "lr": 0.3},
    MEMOIR: {"layer": 0, "steps": 4, "templates": TEMPLATES},
    MELO: {"index_layer": 0, "layers": [1], "steps": 5},
}


def run(
    editor: type[Editor],
    folder: Path,
    fail_at: str | None = None,
    data: ToyData | None = None,
    **arguments: Any,
) -> Any:
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
    trainer.edit(own, data or ToyData(6), run=str(folder), checkpoint_every=2, **arguments)
    cases = (folder / "cases.jsonl").read_text()
    return cases, json.loads((folder / "results.json").read_text())["points"]


@pytest.mark.slow
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


class Repeated(ToyData):
    """Each fact twice: the second time it is answered already."""

    def load_split(self, split: str) -> list[EditRequest]:
        facts = super().load_split(split)[:3]
        return [one for fact in facts for one in (fact, replace(fact, id=f"{fact.id}-again"))]


@pytest.mark.slow
def test_what_is_answered_already_is_left_out_and_noted(tmp_path: Path) -> None:
    arguments = {"only_wrong": True, "data": Repeated(), "eval_at": [2, "end"]}
    whole = run(GRACE, tmp_path / "whole", **arguments)
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    left_out = [name for row in results["events"] for name in row["event"]["edits"]]
    assert left_out[0] == "fact-0-again"
    assert all(name.endswith("-again") for name in left_out)
    assert [point["after"] for point in results["points"]] == [0, 2, 6]
    files = list((tmp_path / "whole" / "ledger").rglob("*.safetensors"))
    assert len(files) == 6 - len(left_out)
    with pytest.raises(RuntimeError, match="planted"):
        run(GRACE, tmp_path / "cut", fail_at="fact-2", **arguments)
    with pytest.raises(LedgerError, match="only_wrong"):
        run(GRACE, tmp_path / "cut", ckpt_path="last", **arguments | {"only_wrong": False})
    assert run(GRACE, tmp_path / "cut", ckpt_path="last", **arguments)[0] == whole[0]
    again = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert again["events"] == results["events"]
    with pytest.raises(ConfigError, match="only_wrong"):
        run(GRACE, tmp_path / "no", protocol="single", **arguments)
