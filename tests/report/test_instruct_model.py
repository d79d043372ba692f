"""On a real instruct model, which goes on writing behind the answer, a held edit counts as held."""

import json
import os
from pathlib import Path

import pytest

from lightning_edit.__main__ import main
from lightning_edit.report.cases import read_edits

_MODEL = Path(os.environ.get("LIGHTNING_EDIT_INSTRUCT_MODEL", Path(__file__).parents[3] / "smol"))
_FACT = {
    "prompt": "The Eiffel Tower is located in the city of",
    "target": "Rome",
    "subject": "Eiffel Tower",
    "old_target": "Paris",
}


@pytest.mark.slow
def test_the_city_with_its_country_is_the_city(tmp_path: Path) -> None:
    if not (_MODEL / "config.json").exists():
        pytest.skip(f"no instruct model in {_MODEL}; set LIGHTNING_EDIT_INSTRUCT_MODEL to a folder")
    facts = tmp_path / "facts.jsonl"
    facts.write_text(json.dumps(_FACT), encoding="utf-8")
    words = f"edit --model FTM --model.layers [12] --lm {_MODEL} --data JSONLDataModule"
    run = tmp_path / "run"
    assert main([*words.split(), "--data.path", str(facts), "--run", str(run)]) == 0
    metrics = json.loads((run / "results.json").read_text())["points"][-1]["metrics"]
    (edit,) = read_edits(run)
    assert edit.itself is not None
    assert str(edit.itself.now).startswith("Rome, ")
    assert edit.held
    assert metrics["reliability/answer@gen"] == metrics["reliability/contains@gen"] == 1.0
    assert metrics["reliability/em@gen"] == 0.0
