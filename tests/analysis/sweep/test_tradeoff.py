"""The verb ``tradeoff`` on the embedded model, and its numbers against ``edit`` with 1-LI."""

import json
from pathlib import Path

import pytest

from lightning_edit.__main__ import main
from lightning_edit.analysis.sweep.measure import ASPECTS, CaseScores, measure_of
from lightning_edit.analysis.sweep.tradeoff import Point, check_weights
from lightning_edit.editors import FTL
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.weights import weights_hash

pytestmark = pytest.mark.slow  # minutes in all: whole edits, studies and traces of a real model

DATA = ["--data", "AtlasDataModule", "--facts", "2"]
HOST = {"lr": "5e-3", "norm_constraint": "2e-2", "layers": "[3]"}
FTL_HOST = ["--model", "FTL", *(x for k, v in HOST.items() for x in (f"--model.{k}", v))]
ONE_LI = ["--model", "OneLI", "--model.editor", "FTL"]
ONE_LI += [x for k, v in HOST.items() for x in (f"--model.editor.{k}", v)]
WEIGHTS = ["--weights", "[1,0,0.6]"]


def tradeoff(folder: Path, *options: str) -> int:
    return main(["tradeoff", *options, "--run", str(folder)])


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tradeoff"
    assert tradeoff(folder, *FTL_HOST, *DATA, *WEIGHTS) == 0
    return folder


def points(folder: Path) -> dict[float, dict[str, float]]:
    rows = json.loads((folder / "tradeoff.json").read_text())["points"]
    return {row.pop("alpha"): row for row in rows}


def test_the_curve_runs_from_the_original_to_the_edited_model(single: Path) -> None:
    found = points(single)
    assert list(found) == [0.0, 0.6, 1.0]
    assert found[0.0] == {"reliability": 0, "generalization": 0, "locality": 1, "score": 0}
    assert found[1.0]["reliability"] >= found[0.6]["reliability"]
    assert found[1.0]["reliability"] > 0
    assert found[1.0]["locality"] < 1.0
    assert (single / "tradeoff.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("protocol", ["single", "batch"])
def test_numbers_are_those_of_edit_with_that_alpha(protocol: str, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    weights = ["--weights", "[0.6]", "--protocol", protocol]
    assert tradeoff(ours, *ONE_LI, *DATA, *weights) == 0
    data = ["--data", "AtlasDataModule", "--data.limit", "2", "--data.split", "val"]
    options = [*ONE_LI, "--model.alpha", "0.6", *data, "--modes", "[tf]", "--protocol", protocol]
    assert main(["edit", *options, "--run", str(tmp_path / "edit")]) == 0
    point = json.loads((tmp_path / "edit" / "results.json").read_text())["points"][-1]
    for aspect in ASPECTS:
        expected = point["metrics"][f"{aspect}/{measure_of(aspect, 'tf')}@tf"]
        assert points(ours)[0.6][aspect] == pytest.approx(expected, abs=1e-4)


def test_each_edit_is_found_once_and_never_again(
    single: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(FTL, "edit", never)
    before = points(single)
    assert tradeoff(single, *FTL_HOST, *DATA, *WEIGHTS) == 0
    assert points(single) == before
    assert "--model OneLI --model.editor FTL --model.alpha" in capsys.readouterr().out


def test_an_interrupted_study_does_only_what_is_missing(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (single / "tradeoff.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 3  # what is studied; two cases at three weights
    # A kill in the middle of a line, after the first case.
    (tmp_path / "tradeoff.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:20])
    searched = []
    real = FTL.edit

    def watched(self: FTL, batch: object) -> object:
        searched.append(batch)
        return real(self, batch)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(FTL, "edit", watched)
    assert tradeoff(tmp_path, *FTL_HOST, *DATA, *WEIGHTS) == 0
    assert len(searched) == 1
    assert (tmp_path / "tradeoff.jsonl").read_bytes() == b"".join(lines)
    assert points(tmp_path) == points(single)


def test_a_batch_whose_edit_is_kept_is_not_solved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = ["--protocol", "batch", "--weights", "[1]"]
    assert tradeoff(tmp_path, *FTL_HOST, *DATA, *batch) == 0
    before = points(tmp_path)
    lines = (tmp_path / "tradeoff.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "tradeoff.jsonl").write_bytes(lines[0])
    monkeypatch.setattr(FTL, "edit", lambda *_: pytest.fail("solved again"))
    assert tradeoff(tmp_path, *FTL_HOST, *DATA, *batch) == 0
    assert points(tmp_path) == before


def test_the_model_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_language_model("atlas")
    before = weights_hash(model)
    loaded = model, PromptEncoder.of(tokenizer)
    monkeypatch.setattr("lightning_edit.cli.study_options.load_configured_model", lambda _: loaded)
    assert tradeoff(tmp_path, *FTL_HOST, *DATA, "--weights", "[0.5]") == 0
    assert weights_hash(model) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--weights", "[0.5,1.5]"], "0 (original) to 1 (edited)"),
        (["--weights", "[]"], "--weights"),
        (["--protocol", "sequential"], "single or batch"),
    ],
)
def test_what_cannot_be_studied(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tradeoff(tmp_path, *FTL_HOST, *DATA, *options) == 2
    assert told in capsys.readouterr().err


def test_another_study_is_refused(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tradeoff(single, *FTL_HOST, *DATA, "--weights", "[0.3]") == 2
    assert "another weights" in capsys.readouterr().err


def test_weights_are_sorted_and_a_point_averages_cases() -> None:
    assert check_weights([1.0, 0.5, 0.0, 0.5]) == [0.0, 0.5, 1.0]
    with pytest.raises(ConfigError):
        check_weights([-0.1])
    outcomes = [CaseScores("a", {"reliability": 1.0}), CaseScores("b", {"reliability": 0.5})]
    assert Point.of(0.5, outcomes).to_row() == {"alpha": 0.5, "reliability": 0.75, "score": 0.75}


def test_an_edit_that_answers_no_rewording_is_compared_by_the_rest() -> None:
    def score(held: float, near: float) -> float:
        values = {"reliability": held, "generalization": 0.0, "locality": near}
        return Point.of(0.5, [CaseScores("a", values)]).score

    assert score(1.0, 0.9) > score(1.0, 0.5) > score(0.0, 1.0) == 0.0
