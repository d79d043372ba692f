"""``lightning-edit attribute`` on runs of every kind of update, on the embedded model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit import EditedModel
from lightning_edit.__main__ import main
from lightning_edit.evaluation.edit_attribution import shares_at_key
from lightning_edit.models.weights import weight

pytestmark = pytest.mark.slow  # a run of the command line each

MEMIT = "--model.steps 12 --model.moment_weight 200"
#: Methods whose update is a sum over its requests, and arguments that write something in few steps.
SUMS = {
    "ROME": "--model.steps 12",
    "AlphaEdit": "--model.steps 12",
    "EMMET": "--model.steps 12",
    "UltraEdit": "--model.eta 0.01",
    "MEMIT": MEMIT,
}
#: Methods whose update is none, and the argument that says so.
WHOLE = {
    "RECT": "--model.editor MEMIT --model.editor.steps 12",
    "FT": "--model.steps 5",
}
FACT = ("The capital of Norway is", "Oslo", "Norway")


def edit(folder: Path, method: str, options: str) -> str:
    words = f"edit --model {method} {options} --data AtlasDataModule --data.limit 4"
    words += " --protocol sequential --batch_size 2 --modes [tf]"
    words += " --trainer.enable_progress_bar false"
    assert main([*words.split(), "--run", str(folder)]) == 0
    return str(folder)


def attribute(run: str, out: Path, *options: str) -> dict[str, Any]:
    assert main(["attribute", run, "--fact", *FACT[:2], "--out", str(out), *options]) == 0
    (row,) = json.loads(out.read_text(encoding="utf-8"))["facts"]
    return dict(row)


@pytest.mark.parametrize("method", SUMS)
def test_shares_of_a_closed_form_method_sum_to_the_change(method: str, tmp_path: Path) -> None:
    run = edit(tmp_path / "run", method, SUMS[method])
    row = attribute(run, tmp_path / "why.json", "--by", "columns", "--top", "99", "--measure", "2")
    effects = row["effects"]
    assert {one["by"] for one in effects} == {"columns"}
    assert len({tuple(one["ids"]) for one in effects}) == 4
    assert row["first_order"] == pytest.approx(sum(one["log_prob"] for one in effects), abs=1e-9)
    edited = EditedModel.open(run)
    edited_weights = {name: weight(edited.model, name).read() for name in edited.ledger.touched}
    found = shares_at_key(edited, FACT)
    for layer in found:
        assert layer.token.strip() and "Norway".endswith(layer.token.strip())  # noqa: PT018
        summed = torch.stack([share for _, share in layer.shares]).sum(0)
        assert (summed - layer.change).abs().max() <= 1e-6
        assert layer.change.norm() > 1e-4
    # A commit that is left out is one that was undone.
    assert len(row["measured"]) == 2
    for one in row["measured"]:
        edited.undo(one["ids"])
        (without,) = edited.attribute([FACT[:2]])
        assert one["log_prob"] == pytest.approx(row["log_prob"] - without.log_prob, abs=1e-4)
        edited.redo(one["ids"])
    edited.undo()
    for layer in found:
        moved = edited_weights[layer.parameter] - weight(edited.model, layer.parameter).read()
        lost = moved.double() @ layer.key - layer.change
        assert lost.norm() <= 1e-3 * layer.change.norm() + 1e-6


@pytest.mark.parametrize("method", WHOLE)
def test_what_is_no_sum_refuses_columns_and_goes_by_undo(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = edit(tmp_path / "run", method, WHOLE[method])
    assert main(["attribute", run, "--fact", *FACT[:2], "--by", "columns"]) == 2
    said = capsys.readouterr().err
    assert "has no columns of its requests" in said
    assert "--by undo" in said
    row = attribute(run, tmp_path / "why.json", "--top", "9", "--measure", "2")
    assert "attributed as a whole" in " ".join(capsys.readouterr().out.split())
    assert {one["by"] for one in row["effects"]} == {"undo"}
    assert {len(one["ids"]) for one in row["effects"]} == {2}
    undone = attribute(run, tmp_path / "undo.json", "--by", "undo")
    assert not undone["effects"]
    both = {tuple(one["ids"]): one["log_prob"] for one in row["measured"]}
    for one in undone["measured"]:
        assert both[tuple(one["ids"])] == pytest.approx(one["log_prob"], abs=1e-5)
