"""Locality and portability callbacks, and the small tasks that ship with the package."""

from pathlib import Path

import pytest
import torch

from lightning_edit.callbacks import LocalityCallback, PortabilityCallback
from lightning_edit.datamodules.other_task import other_task_probes
from lightning_edit.evaluation.scorer import ScoredProbe, Scorer
from lightning_edit.exceptions import DataError
from lightning_edit.models.loading import load_language_model
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.storage.jsonl import read_rows
from tests.callbacks.foreign import FineTuning, loader, trainer
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer

FACT = {
    "prompt": "The capital of France is",
    "target": "Lyon",
    "probes": [
        {"kind": "neighborhood", "prompt": "The capital of Italy is", "answers": "Rome"},
        {"kind": "one_hop", "prompt": "Arles lies in", "answers": ["Italy"]},
    ],
}


def test_the_tasks_are_about_a_hundred_and_one_can_be_asked_of_any_model() -> None:
    probes = other_task_probes()
    assert 90 <= len(probes) <= 120
    assert len({probe.prompt for probe in probes}) == len(probes)
    assert {probe.expect for probe in probes} == {"unchanged"}
    assert other_task_probes(7, "a") == other_task_probes(7, "a") != other_task_probes(7, "b")
    scores = Scorer(*load_language_model("atlas"), modes=("tf",)).score(
        [ScoredProbe(str(number), probe) for number, probe in enumerate(probes)]
    )
    assert all(torch.isfinite(torch.tensor(score.nll)) for score in scores)


def test_a_data_module_adds_tasks_to_its_requests() -> None:
    data = ToyData(3)
    data.other_task = 4
    added = [[p for p in r.probes if p.kind == "other_task"] for r in data.edit_requests()]
    assert [len(probes) for probes in added] == [4, 4, 4]
    assert added[0] != added[1]
    assert all(p.kind != "other_task" for r in data.requests("train") for p in r.probes)
    data = ToyData(3)
    data.other_task = -1
    with pytest.raises(DataError, match="`other_task` of a data set must be 0 or more; got -1"):
        data.edit_requests()


def test_in_our_loop_they_say_what_the_session_found_and_locality_adds_tasks(
    tmp_path: Path,
) -> None:
    callbacks = [LocalityCallback(other_task=5, modes=("tf",)), PortabilityCallback()]
    settings = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    run = EditTrainer(callbacks=callbacks, **settings)
    plain = EditTrainer(**settings)
    found = []
    for name, one in (("with", run), ("without", plain)):
        editor = ToyEditor().bind(toy_model(), toy_tokenizer())
        options = {"protocol": "batch", "modes": ("tf",), "run": str(tmp_path / name)}
        found.append(one.edit(editor, ToyData(4), **options)["points"][-1]["metrics"])
    added = found[0].keys() - found[1].keys()
    assert added == {
        f"locality.other_task/{measure}@tf" for measure in ("kept", "em", "token_acc", "nll")
    }
    assert {name: found[0][name] for name in found[1]} == found[1]
    rows = read_rows(tmp_path / "with" / "measures.jsonl")
    assert {row["by"] for row in rows} == {"LocalityCallback", "PortabilityCallback"}
    logged = [row for row in rows if row["by"] == "LocalityCallback" and row["after"] == 4]
    assert logged[0]["values"]["locality/kept@tf"] == found[1]["locality/kept@tf"]


def test_in_anyones_trainer_each_names_its_own_aspect(tmp_path: Path) -> None:
    locality = LocalityCallback([FACT], other_task=3, prefix="a/", modes=("tf",))
    portability = PortabilityCallback([FACT], prefix="b/", modes=("tf",))
    run = trainer(tmp_path, locality, portability)
    run.fit(FineTuning(), loader(), loader(1))
    named = {name for name in run.callback_metrics if name.startswith(("a/", "b/"))}
    assert {name.split("/")[1].split(".")[0] for name in named if name[0] == "a"} == {"locality"}
    assert {name.split("/")[1].split(".")[0] for name in named if name[0] == "b"} == {"portability"}
    kept = run.callback_metrics["a/locality.other_task/kept@tf"]
    assert 0 <= kept <= 1
    assert run.callback_metrics["a/locality.neighborhood/nll@tf"] > 0
