"""The verb ``sweep`` on the embedded model."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.__main__ import main
from lightning_edit.analysis.sweep.measure import ASPECTS, measure_of
from lightning_edit.cli import study_trials
from lightning_edit.cli import sweep as cli
from lightning_edit.editors import FTL
from lightning_edit.editors.wrappers.one_li import scaled
from lightning_edit.edits.delta import Delta
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.weights import weights_hash

pytestmark = pytest.mark.slow  # minutes in all: whole edits, studies and traces of a real model

DATA = ["--data", "AtlasDataModule", "--facts", "2"]
FTL_OPTIONS = ["--model", "FTL", "--model.lr", "5e-3", "--model.norm_constraint", "2e-2", *DATA]


def sweep(folder: Path, *options: str) -> int:
    return main(["sweep", *options, "--run", str(folder)])


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    assert sweep(folder, *FTL_OPTIONS, "--candidates", "[0,3]", "--figures", "[png,svg]") == 0
    return folder


def test_layers_are_measured_and_drawn(swept: Path) -> None:
    record = json.loads((swept / "sweep.json").read_text())
    assert [one["layers"] for one in record["tried"]] == [[0], [3]]
    assert all(len(one["cases"]) == 2 for one in record["tried"])
    assert record["study"]["data"]["split"] == "val"
    assert (swept / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert (swept / "sweep.svg").exists()


def test_numbers_are_those_of_edit_with_protocol_single(swept: Path, tmp_path: Path) -> None:
    options = [
        *FTL_OPTIONS[:6],
        "--data",
        "AtlasDataModule",
        "--data.limit",
        "2",
        "--data.split",
        "val",
    ]
    options += ["--model.layers", "[3]", "--modes", "[tf]", "--run", str(tmp_path)]
    assert main(["edit", *options, "--protocol", "single"]) == 0
    point = json.loads((tmp_path / "results.json").read_text())["points"][-1]
    record = json.loads((swept / "sweep.json").read_text())
    (ours,) = (one for one in record["rated"] if one["layers"] == [3])
    for aspect in ASPECTS:
        expected = point["metrics"][f"{aspect}/{measure_of(aspect, 'tf')}@tf"]
        assert ours[aspect] == pytest.approx(expected, abs=1e-4)


def test_an_editor_of_one_layer_is_swept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path / "run", "--model", "GRACE", *DATA, "--candidates", "[2,3]") == 0
    record = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert [one["layers"] for one in record["tried"]] == [[2], [3]]
    best = record["rated"][0]["layers"][0]
    assert f"To edit there: --model.layer {best}\n" in capsys.readouterr().out


def test_a_sweep_goes_on_and_measures_nothing_twice(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((swept / "sweep.json").read_text())
    measured = []
    real = cli._run_trial

    def watched(*arguments: object) -> object:
        measured.append(arguments[2])
        return real(*arguments)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(cli, "_run_trial", watched)
    assert sweep(swept, *FTL_OPTIONS, "--candidates", "[0,3,4]") == 0
    assert measured == [[4]]
    assert json.loads((swept / "sweep.json").read_text())["tried"][:2] == before["tried"]
    assert "--model.layers '[" in capsys.readouterr().out


def test_a_folder_of_another_sweep_is_refused(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(swept, *FTL_OPTIONS, "--model.steps", "3", "--candidates", "[0]") == 2
    assert "another editor" in capsys.readouterr().err


def test_an_interrupt_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = cli._run_trial

    def killed(*arguments: object) -> object:
        if arguments[2] == [1]:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(cli, "_run_trial", killed)
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *FTL_OPTIONS, "--candidates", "[0,1]"]) == 1
    (folder,) = Path("runs").iterdir()
    assert f"--run {folder}" in capsys.readouterr().err
    record = json.loads((folder / "sweep.json").read_text())
    assert [one["layers"] for one in record["tried"]] == [[0]]


def test_a_wrapped_editor_is_swept_at_its_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "RECT", "--model.editor", "MEMIT", "--model.editor.steps", "3"]
    options += ["--model.editor.statistics", "identity", "--candidates", "[1]"]
    options += ["--model.editor.moment_weight", "0.1", "--model.editor.context_templates", "[]"]
    assert sweep(tmp_path, *options, *DATA) == 0
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert [one["layers"] for one in record["tried"]] == [[1, 2]]  # MEMIT's two layers of five
    assert "RECT(MEMIT) on atlas" in capsys.readouterr().out


def test_missing_statistics_are_asked_for_all_layers_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_language_model("atlas")
    model.save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    monkeypatch.setenv("LIGHTNING_EDIT_CACHE", str(tmp_path / "cache"))
    options = ["--model", "ROME", *DATA, "--lm", str(tmp_path / "own")]
    assert sweep(tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert "lightning-edit stats" in error
    assert "[0, 1, 2, 3, 4]" in error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "MEND", *DATA], "lightning-edit fit"),
        (["--model", "FTL", "--data", "AtlasDataModule", "--facts", "0"], "--facts must be 1"),
        (["--model", "FTL", *DATA, "--figures", "[gif]"], "png, pdf, svg"),
        (["--model", "FTL"], "data"),
        (
            ["--model", "UltraEdit", "--model.modules", "[model.layers.3.mlp.down_proj]", *DATA],
            "edits `modules` in place of `layers`",
        ),
        (["--model", "FTLL", *DATA], "did you mean FTL"),
        (["--model", "RECT", "--model.editor", "FTL", *DATA, "--candidates", "[9]"], "0 to 4"),
    ],
)
def test_what_cannot_be_swept(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, *options) == 2
    assert told in capsys.readouterr().err


def test_a_layer_without_a_finite_edit_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = study_trials.deltas_alone

    def broken(editor: FTL, *arguments: Any) -> Iterator[tuple[Any, Delta]]:
        for case, delta in real(editor, *arguments):
            factor = float("nan") if editor.layers == [1] else 1.0
            weights = {name: scaled(one, factor) for name, one in delta.weights.items()}
            yield case, replace(delta, weights=weights)

    monkeypatch.setattr(study_trials, "deltas_alone", broken)
    assert sweep(tmp_path, *FTL_OPTIONS, "--candidates", "[1,3]") == 0
    assert "Layer 1 could not be edited: the update of" in capsys.readouterr().out
    first, second = json.loads((tmp_path / "sweep.json").read_text())["tried"]
    assert "not finite" in first["failed"]
    assert second["failed"] is None
    assert len(second["cases"]) == 2


def test_an_editor_of_one_layer_takes_no_window(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "ROME", "--model.statistics", "identity", "--width", "2"]
    assert sweep(tmp_path, *options, *DATA) == 2
    assert "ROME edits one layer, got layers [0, 1]" in capsys.readouterr().out


def test_without_matplotlib_there_is_a_table_and_a_notice(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert sweep(swept, *FTL_OPTIONS, "--candidates", "[3]") == 0
    told = capsys.readouterr()
    assert "lightning-edit[plot]" in told.err
    assert "harmonic" in told.out


def test_the_model_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_language_model("atlas")
    before = weights_hash(model)
    loaded = model, PromptEncoder.of(tokenizer)
    monkeypatch.setattr("lightning_edit.cli.study_options.load_configured_model", lambda _: loaded)
    assert sweep(tmp_path, *FTL_OPTIONS, "--candidates", "[2]") == 0
    assert weights_hash(model) == before
