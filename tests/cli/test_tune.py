"""The verb ``tune`` on the embedded model: record, resume, and a file that ``edit`` takes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_edit import editors
from lightning_edit.__main__ import main
from lightning_edit.analysis.sweep.measure import CaseScores
from lightning_edit.analysis.tuning import search
from lightning_edit.cli import tune as cli
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash

DATA = ["--lm", "atlas", "--data", "AtlasDataModule", "--facts", "2"]
FTM = ["FTM", *DATA, "--only", "[layers,lr]", "--candidates", "[0,4]", "--model.steps", "15"]
FTM += ["--model.lr", "2e-3", "--space", "{lr: [1e-3, 1e-2]}"]


def tune(folder: Path, *options: str) -> int:
    return main(["tune", *options, "--run", str(folder)])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "tune.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tune"
    assert tune(folder, *FTM, "--trials", "4") == 0
    return folder


@pytest.mark.slow
def test_the_record_the_plot_and_the_file(tuned: Path) -> None:
    study, *trials = rows(tuned)
    assert study["space"]["lr"] == {"low": 1e-3, "high": 1e-2, "integer": False, "log": True}
    assert study["windows"] == [[0], [4]]
    assert trials[0]["trial"]["settings"] == {"lr": 2e-3}  # the editor's own
    assert len(trials) == 4
    assert (tuned / "tune.png").read_bytes().startswith(b"\x89PNG")
    best = yaml.safe_load((tuned / "FTM.yaml").read_text())["model"]["init_args"]
    listed = [(one["trial"]["layers"], one["trial"]["settings"]["lr"]) for one in trials]
    assert (best["layers"], best["lr"]) in listed
    assert best["steps"] == 15


@pytest.mark.slow
def test_a_search_that_stopped_goes_on_with_the_same_trials(tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    assert tune(folder, *FTM, "--trials", "2") == 0
    assert tune(folder, *FTM, "--trials", "4") == 0
    ours, whole = rows(folder)[1:], rows(tuned)[1:]
    assert [one["proposed"] for one in ours] == [one["proposed"] for one in whole]
    assert [one["trial"]["cases"] for one in ours] == [one["trial"]["cases"] for one in whole]
    assert tune(folder, *FTM, "--trials", "4", "--facts", "1") == 2  # another study


@pytest.mark.slow
def test_edit_takes_the_file_and_has_its_scores(tuned: Path, tmp_path: Path) -> None:
    options = ["--config", str(tuned / "FTM.yaml"), "--data", "AtlasDataModule", "--data.limit"]
    options += ["2", "--data.split", "val", "--modes", "[tf]", "--run", str(tmp_path / "run")]
    assert main(["edit", *options, "--protocol", "single"]) == 0
    point = json.loads((tmp_path / "run" / "results.json").read_text())["points"][-1]
    head = (tuned / "FTM.yaml").read_text().splitlines()[1]
    for aspect, measure in (("reliability", "em"), ("locality", "kept")):
        assert f"{aspect} {point['metrics'][f'{aspect}/{measure}@tf']:.3f}" in head


def stub_trial(*arguments: Any, **options: Any) -> Any:
    """Every edit holds; the editor is bound, so that its arguments must fit the model."""
    study, editor = arguments[:2]
    editor.bind(study.model, study.prompts)
    values = {"reliability": 1.0, "generalization": 0.5, "locality": 1.0}
    return [CaseScores(case[0].id, values) for case in study.cases], 0.0


@pytest.mark.parametrize("method", ["MELO", "OneLI", "GRACE"])
def test_the_first_trial_and_the_file_are_the_editor_that_edit_has(
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its host is named where it is the default one; layers are those of its own argument."""
    edited = []

    def watched(*arguments: Any, **options: Any) -> Any:
        found = stub_trial(*arguments, **options)
        edited.append(arguments[1])
        return found

    monkeypatch.setattr(cli, "run_trial", watched)
    assert tune(tmp_path / "run", method, *DATA, "--lm_bos", "true", "--trials", "1") == 0
    assert f"{method}.yaml --lm atlas --lm_bos true --data" in capsys.readouterr().out
    made = yaml.safe_load((tmp_path / "run" / f"{method}.yaml").read_text())["model"]
    bound = getattr(editors, method)().bind(*load_language_model("atlas"))
    if method == "MELO":
        assert edited[0].modules_with_blocks == bound.modules_with_blocks
        assert edited[0].index_module == bound.index_module
        assert made["init_args"]["layers"] == bound.lora_layers
    if method == "OneLI":
        assert type(edited[0].editor) is type(bound.editor)
        assert edited[0].editor.edited_layers == bound.editor.edited_layers
        inner = made["init_args"]["editor"]
        assert (inner["class_path"], inner["init_args"]["lr"]) == ("lightning_edit.FTM", "auto")
        assert made["init_args"]["alpha"] == "auto"
    (row,) = rows(tmp_path / "run")[1:]
    assert set(row["trial"]["settings"]) <= {
        "lr",
        "steps",
        "radius",
        "radius_share",
        "scale",
        "alpha",
    }


def test_choices_that_do_not_fit_are_results_after_the_editors_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run_trial", stub_trial)
    melo = ["MELO", *DATA, "--only", "[layers]"]
    assert tune(tmp_path / "a", *melo, "--candidates", "[[0], [4]]", "--trials", "6") == 0
    assert "Impossible: layers 0: MELO decides at an index block" in capsys.readouterr().out
    assert tune(tmp_path / "b", "MEMIT", "--lm", "atlas-t5", *DATA[2:], "--trials", "6") == 2
    assert "MEMIT edits decoder-only models" in capsys.readouterr().err
    ultra = ["UltraEdit", "--model.modules", "[model.layers.3.mlp.down_proj]", *DATA]
    assert tune(tmp_path / "c", *ultra, "--trials", "6") == 2
    assert "edits `modules` in place of `layers`" in capsys.readouterr().err
    assert tune(tmp_path / "d", *ultra, "--only", "[eta]", "--trials", "2") == 0


@pytest.mark.parametrize("method", ["GRACE", "WISE", "MEMOIR"])
def test_the_one_layer_of_an_editor_is_searched_too(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = []

    def watched(*arguments: Any, **options: Any) -> Any:
        edited.append(arguments[1].layer)
        return stub_trial(*arguments, **options)

    monkeypatch.setattr(cli, "run_trial", watched)
    asked = [method, *DATA, "--only", "[layer]", "--candidates", "[2,3]"]
    assert tune(tmp_path / "run", *asked, "--trials", "4") == 0
    assert set(edited) == {2, 3}
    made = yaml.safe_load((tmp_path / "run" / f"{method}.yaml").read_text())["model"]
    assert made["init_args"]["layer"] in (2, 3)
    assert "layers" not in made["init_args"]


def test_an_editor_of_one_layer_is_not_given_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path / "a", "GRACE", *DATA, "--candidates", "[[2,3]]") == 2
    assert "GRACE edits one layer, got [2, 3] together" in capsys.readouterr().err
    sweep = ["sweep", "--model", "GRACE", *DATA[2:], "--width", "2", "--run", str(tmp_path / "b")]
    assert main(sweep) == 2
    assert "GRACE edits one layer, got [0, 1] together" in capsys.readouterr().err


def test_candidates_are_tried_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run_trial", stub_trial)
    asked = [*DATA, "--candidates", "[[0],[4]]", "--trials", "1"]
    assert tune(tmp_path / "a", "LoRAEdit", *asked) == 0  # all layers at once by itself
    assert rows(tmp_path / "a")[0]["windows"] == [[0], [4]]
    assert tune(tmp_path / "b", "RAG", *asked, "--space", "{threshold: [0.1, 0.9]}") == 2
    assert "RAG has no argument for them" in capsys.readouterr().err
    assert tune(tmp_path / "c", "FTM", *asked, "--only", "[lr]") == 2
    assert "--only does not name `layers`" in capsys.readouterr().err


def test_what_was_found_is_there_after_an_interruption_and_out_of_memory_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = iter([None, torch.OutOfMemoryError("tried to allocate"), KeyboardInterrupt()])

    def watched(*arguments: Any, **options: Any) -> Any:
        if (end := next(ends)) is not None:
            raise end
        return stub_trial(*arguments, **options)

    monkeypatch.setattr(cli, "run_trial", watched)
    assert tune(tmp_path, *FTM, "--trials", "4") == 1
    shown = capsys.readouterr()
    assert "Interrupted" in shown.err
    assert "out of memory" in shown.out
    assert (tmp_path / "FTM.yaml").exists()
    assert len(rows(tmp_path)) == 3


def test_facts_that_may_be_edited_later_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run_trial", stub_trial)
    facts = tmp_path / "facts.jsonl"
    row = {"prompt": "The capital of France is", "subject": "France", "target": "Oslo"}
    facts.write_text(json.dumps(row) + "\n")
    data = ["--data", "JSONLDataModule", "--data.path", str(facts)]
    assert tune(tmp_path / "run", "FTM", "--lm", "atlas", *data, "--trials", "1") == 0
    assert "no split `val`" in (said := capsys.readouterr().err)
    assert "`test`" in said
    assert tune(tmp_path / "val", *FTM, "--trials", "1") == 0
    assert "no split" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_that_writes_nothing_is_given_up_and_leaves_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []
    real = cli.run_trial

    def watched(study: Any, *arguments: Any, **options: Any) -> Any:
        before = weights_hash(study.model)
        outcomes, seconds = real(study, *arguments, **options)
        assert weights_hash(study.model) == before
        tried.append(len(outcomes))
        return outcomes, seconds

    monkeypatch.setattr(cli, "run_trial", watched)
    asked = ["FTM", *DATA[:-1], "5", "--only", "[lr]", "--model.steps", "15", "--model.lr", "2e-3"]
    asked += ["--space", "{lr: [1e-9, 1e-2]}", "--out", str(tmp_path / "new" / "FTM.yaml")]
    assert tune(tmp_path / "run", *asked, "--trials", "4") == 0
    assert tried[0] == 5  # the editor's own settings are tried on all facts
    assert 3 in tried
    said = capsys.readouterr().out
    assert "Given up: layers 3, lr " in said
    assert "it wrote none of 3 facts that the editor's own settings write" in said
    assert (tmp_path / "new" / "FTM.yaml").exists()  # in a folder that was not there
    failed = [one["trial"]["failed"] for one in rows(tmp_path / "run")[1:]]
    assert failed.count("given up") == tried.count(3)


def test_a_file_that_could_not_be_written_is_refused_before_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out, told in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "a.yaml", "is a file, where"),
    ):
        assert tune(tmp_path / "run", "FTM", *DATA, "--out", str(out)) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_facts_may_be_written_together_and_an_interrupt_keeps_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = cli.run_trial, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(options["together"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(cli, "run_trial", interrupted)
    assert tune(tmp_path / "run", *FTM, "--together", "true", "--trials", "3") == 1
    assert calls == [True, True]
    assert len(rows(tmp_path / "run")) == 2  # the study and one trial
    assert "go on with" in capsys.readouterr().err


def test_what_cannot_be_searched_is_said_before_anything_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path / "a", "FTM", *DATA, "--only", "[width]") == 2
    assert "width cannot be searched: the editor's numbers are" in capsys.readouterr().err
    assert tune(tmp_path / "b", "MEND", *DATA) == 2
    assert "is trained for the layers" in capsys.readouterr().err
    assert tune(tmp_path / "c", "FTM", *DATA, "--budget", "0") == 2
    assert "above 0; got 0" in capsys.readouterr().err
    assert tune(tmp_path / "c", "FTM", *DATA, "--trials", "0") == 2
    assert "--trials must be 1 or more, got 0" in capsys.readouterr().err
    assert tune(tmp_path / "c", "ICE", *DATA) == 2
    assert "nothing to search by default" in capsys.readouterr().err
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    assert tune(tmp_path / "d", "FTM", *DATA) == 2
    assert 'pip install "lightning-edit[tune]"' in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
