"""The ripple callback: planted faults, resumes, anyone's Trainer, two processes."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lightning_edit.atlas.facts import atlas_facts
from lightning_edit.atlas.graph import load_atlas
from lightning_edit.callbacks import RippleCallback
from lightning_edit.callbacks.ripple import Neighbours
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import ROME
from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.exceptions import ConfigError
from lightning_edit.inference.hooks import capture
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weight
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.storage.jsonl import read_rows
from lightning_edit.types import EditBatch
from lightning_edit.types.facts import Fact
from tests.callbacks.foreign import FineTuning, loader, trainer
from tests.forks import Forks
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer

pytestmark = pytest.mark.bits

#: Where and how hard the leaking editor writes.
LAYER, STRENGTH = 2, 40.0
FACTS = [
    Fact(f"land{i}", "capital", f"city{i % 40}", f"the capital of land{i} is", (f"city{i % 40}",))
    for i in range(250)
]


class Idle(Editor):
    """Writes nothing."""

    def edit(self, batch: EditBatch) -> Delta:
        parameter = self.view.parameter(0)
        d_out, d_in = weight(self.language_model, parameter).shape
        update = LowRank(torch.zeros(d_out, 1), torch.zeros(1, d_in))
        return Delta(batch.ids, {parameter: update})


class Leaking(Editor):
    """Writes along the key of its request, so what has a similar key moves with it."""

    def edit(self, batch: EditBatch) -> Delta:
        parameter, module = self.view.parameter(LAYER), self.view.down_projection(LAYER)
        left, right = [], []
        for encoded in batch.encoded:
            with torch.no_grad(), capture(self.language_model, {module: "input"}) as seen:
                self.language_model(input_ids=torch.tensor([encoded.prompt_ids]))
            key = seen[module][0, encoded.subject_last]
            draw = torch.Generator().manual_seed(3)
            left.append(
                torch.randn(weight(self.language_model, parameter).shape[0], generator=draw)
            )
            right.append(STRENGTH * key / key.norm() ** 2)
        update = LowRank(torch.stack(left, 1), torch.stack(right))
        return Delta(batch.ids, {parameter: update})


def callback(**options: object) -> RippleCallback:
    settings = {"facts": FACTS, "representation": "key", "layer": 0, "size": 10} | options
    return RippleCallback(known_only=False, **settings)


def edit(run: Path, editor: Editor, count: int = 5, **options: object) -> dict[str, float]:
    editor.bind(toy_model(), toy_tokenizer())
    settings = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    run_trainer = EditTrainer(callbacks=[callback()], **settings)
    results = run_trainer.edit(
        editor, ToyData(count), run=str(run), modes=("tf",), **({"protocol": "batch"} | options)
    )
    return results["points"][-1]["metrics"]


def test_an_editor_that_does_nothing_makes_no_ripple(tmp_path: Path) -> None:
    values = edit(tmp_path, Idle())
    changes = [v for name, v in values.items() if name.startswith("ripple") and "change" in name]
    assert changes
    assert set(changes) == {0.0}
    assert values["ripple/gie@tf"] == 0
    assert values["ripple.near/beyond@tf"] == 0
    assert values["ripple.near/em@tf"] == values["ripple.near/em_before@tf"]
    assert values["locality/kept@tf"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("neighbours", ["hidden", "key_overlap"])
def test_an_editor_that_leaks_along_its_key_is_seen_where_keys_are_similar(
    tmp_path: Path, neighbours: Neighbours
) -> None:
    editor = Leaking().bind(*load_language_model("atlas"))
    facts = random.Random(0).sample(atlas_facts(load_atlas()), 400)
    # The leaking editor knows no statistics: its overlap is that of the identity.
    ripple = RippleCallback(
        facts, "key", LAYER, neighbours=neighbours, statistics="identity", size=10
    )
    run = EditTrainer(
        callbacks=[ripple], accelerator="cpu", enable_progress_bar=False, logger=False
    )
    results = run.edit(
        editor, AtlasDataModule(limit=3), run=str(tmp_path), modes=("tf",), protocol="single"
    )
    values = results["points"][-1]["metrics"]
    assert values["ripple.near/change@tf"] > values["ripple.random/change@tf"] + 0.1
    assert values["ripple/gie@tf"] > 0.1
    assert values["ripple.near/em@tf"] < values["ripple.random/em@tf"]
    assert values["locality/kept@tf"] < 1
    rows = read_rows(tmp_path / "ripple.jsonl")
    rows.sort(key=lambda row: row["similarity"])
    moved = [row["nll_after"] - row["nll_before"] for row in rows]
    assert sum(moved[-20:]) > 2 * sum(map(abs, moved[:20]))


@pytest.mark.slow
def test_facts_that_a_trial_edit_moves_are_moved_by_the_edit(tmp_path: Path) -> None:
    """The run's editor is that of the trial, so that sizes agree too where they are small."""
    facts = random.Random(0).sample(atlas_facts(load_atlas()), 300)
    ripple = RippleCallback(facts, neighbours="first_order", size=15, known_only=False)
    editor = ROME().bind(*load_language_model("atlas"))
    run = EditTrainer(
        callbacks=[ripple], accelerator="cpu", enable_progress_bar=False, logger=False
    )
    run.edit(editor, AtlasDataModule(limit=3), run=str(tmp_path), modes=("tf",), protocol="single")
    rows = read_rows(tmp_path / "ripple.jsonl")
    moved = {
        name: [abs(r["nll_after"] - r["nll_before"]) for r in rows if r["set"] == name]
        for name in ("near", "random")
    }
    assert sum(moved["near"]) > 3 * sum(moved["random"]) * len(moved["near"]) / len(moved["random"])
    foretold = torch.tensor([row["similarity"] for row in rows])
    seen = torch.tensor([abs(row["nll_after"] - row["nll_before"]) for row in rows])
    ranks = torch.stack([one.argsort().argsort().double() for one in (foretold, seen)])
    assert torch.corrcoef(ranks)[0, 1] > 0.7


def test_a_trial_edit_leaves_no_trace(tmp_path: Path) -> None:
    options = {"layer": 0, "statistics": "identity", "size": 5, "known_only": False}
    results = []
    for neighbours in ("hidden", "first_order"):
        ripple = RippleCallback(FACTS[:60], neighbours=neighbours, **options)
        run = EditTrainer(
            callbacks=[ripple], accelerator="cpu", enable_progress_bar=False, logger=False
        )
        editor = ToyEditor().bind(toy_model(), toy_tokenizer())
        folder = tmp_path / neighbours
        results.append(
            run.edit(editor, ToyData(2), run=str(folder), modes=("tf",), protocol="batch")
        )
    metrics = [
        {k: v for k, v in one["points"][-1]["metrics"].items() if "ripple" not in k}
        for one in results
    ]
    assert metrics[0] == metrics[1]
    rows = read_rows(tmp_path / "first_order" / "ripple.jsonl")
    near = [row["similarity"] for row in rows if row["set"] == "near"]
    far = [row["similarity"] for row in rows if row["set"] == "random"]
    assert len(near) == 10
    assert min(near) >= 0
    assert min(near[:5]) >= max(far[:5])


def test_rows_say_what_a_page_needs_and_edited_facts_are_in_no_set(tmp_path: Path) -> None:
    values = edit(tmp_path, ToyEditor(), count=4, protocol="sequential", eval_at=[1, "end"])
    rows = read_rows(tmp_path / "ripple.jsonl")
    assert {row["after"] for row in rows} == {1, 4}
    last = [row for row in rows if row["after"] == 4]
    assert {row["edit_id"] for row in last} == {f"fact-{i}" for i in range(4)}
    assert {row["edit_id"] for row in rows if row["after"] == 1} == {"fact-0"}
    assert rows[0].keys() == {
        "after", "edit_id", "fact", "distance", "similarity", "set", "nll_before", "nll_after",
        "rank_before", "rank_after", "right_before", "right_after",
    }  # fmt: skip
    assert rows[0]["fact"].keys() == {"subject", "relation", "object", "prompt"}
    edited = {request.prompt for request in toy_requests(4)}
    assert not edited & {row["fact"]["prompt"] for row in rows}
    near = [row["nll_after"] - row["nll_before"] for row in last if row["set"] == "near"]
    assert values["ripple.near/change@tf"] == pytest.approx(sum(near) / len(near))
    assert values["ripple.near/facts"] == len(near) == 40


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    options = {"protocol": "sequential", "eval_at": [2, "end"], "checkpoint_every": 1}
    whole = edit(tmp_path / "whole", ToyEditor(), **options)
    with pytest.raises(RuntimeError, match="planted"):
        edit(tmp_path / "cut", ToyEditor("fact-3"), **options)
    resumed = edit(tmp_path / "cut", ToyEditor(), ckpt_path="last", **options)
    assert resumed == whole
    files = [(tmp_path / name / "ripple.jsonl").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_the_model_is_as_before(tmp_path: Path) -> None:
    module = FineTuning()
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    torch.manual_seed(5)
    ripple = foreign_callback()
    ripple.on_fit_start(trainer(tmp_path), module)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(before[name], v) for name, v in module.backbone.state_dict().items())
    assert module.backbone.training


def foreign_callback(**options: object) -> RippleCallback:
    names = ["France", "Italy", "Arles", "Lyon", "Marseille", "Paris", "Rome"]
    facts = [
        Fact(name, "capital", other, f"The capital of {name} is", (other,))
        for name, other in pairwise(names)
    ]
    return RippleCallback(
        facts, size=2, known_only=False, seed=1,
        requests=[{"prompt": "The capital of Paris is", "target": "Lyon", "subject": "Paris"}],
        **options,
    )  # fmt: skip


def test_in_anyones_trainer(tmp_path: Path) -> None:
    ripple = foreign_callback(directory=str(tmp_path / "rows"), every_n_steps=4)
    run = trainer(tmp_path, ripple)
    run.fit(FineTuning(), loader(), loader(1))
    assert run.callback_metrics["ripple.hop_1/change@tf"] != 0
    written = sorted(path.name for path in (tmp_path / "rows").glob("*.jsonl"))
    assert written[0] == "step-00000000.jsonl"
    rows = read_rows(tmp_path / "rows" / written[-1])
    assert rows
    assert len({row["edit_id"] for row in rows}) == 1


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give it `requests` or `data`"):
        trainer(tmp_path, RippleCallback(FACTS)).fit(FineTuning(), loader(), loader(1))
    with pytest.raises(ConfigError, match="`size` must be at least 1, got 0"):
        RippleCallback(FACTS, size=0)
    bare = RippleCallback(requests=[{"prompt": "The capital of Paris is", "target": "Lyon"}])
    with pytest.raises(ConfigError, match="their probes state none"):
        trainer(tmp_path, bare).fit(FineTuning(), loader(), loader(1))


def measure(root: str, devices: int) -> None:
    ripple = foreign_callback(directory=f"{root}/rows")
    strategy = "ddp" if devices > 1 else "auto"
    run = trainer(Path(root), ripple, max_epochs=1, devices=devices, strategy=strategy)
    run.fit(FineTuning(lr=0.0), loader(), loader(1))
    values = {name: float(value) for name, value in run.callback_metrics.items() if "/" in name}
    Path(root, f"rank-{run.global_rank}.json").write_text(json.dumps(values))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, forks: Forks) -> None:
    found = []
    for devices in (1, 2):
        root = tmp_path / str(devices)
        root.mkdir()
        forks.run(measure, root, devices, ranks=devices)
        ranks = [json.loads((root / f"rank-{rank}.json").read_text()) for rank in range(devices)]
        assert all(values == ranks[0] for values in ranks)
        found.append(ranks[0])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
