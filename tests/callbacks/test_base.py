"""When callbacks measure, where the numbers go, and that a resumed run has the same ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from lightning_edit.callbacks import EditEvaluation
from lightning_edit.callbacks.base import Commit, EvalContext, Measurement, MeasurementCallback
from lightning_edit.session.trainer import EditTrainer
from tests.callbacks.foreign import FineTuning, loader, trainer
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer

pytestmark = [
    pytest.mark.bits,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]


class SizeOfWeights(MeasurementCallback):
    """The sum of all weights, the change of it, and how many commits were seen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commits = 0

    def measure(self, context: EvalContext) -> Measurement:
        total = sum(float(p.detach().double().sum()) for p in context.model.parameters())
        values = {"drift/size": total, "drift/commits": float(self.commits)}
        if self.before is not None:
            values["drift/change"] = total - self.before[f"{self.prefix}drift/size"]
        return Measurement(values, [{"asked": len(context.scores)}])

    def on_commit(self, commit: Commit) -> None:
        assert commit.context.requests[0].id == commit.delta.request_ids[0]
        self.commits += 1

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"commits": self.commits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.commits = state_dict["commits"]

    def reset(self) -> None:
        super().reset()
        self.commits = 0


class Watch(Callback):
    """Takes down what early stopping would see after each batch of edits."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if "drift/size" in trainer.callback_metrics:
            self.seen.append(float(trainer.callback_metrics["drift/size"]))


def edit(run: Path, *callbacks: Callback, **options: Any) -> dict[str, Any]:
    editor = ToyEditor(options.pop("fail_at", None)).bind(toy_model(), toy_tokenizer())
    edits = EditTrainer(
        logger=options.pop("logger", False),
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=list(callbacks),
    )
    options = {"checkpoint_every": 3, "modes": ("tf",), "eval_at": [1, 5, "end"]} | options
    return edits.edit(editor, ToyData(12), run=str(run), **options)


def test_values_stand_in_the_points_and_in_the_log(tmp_path: Path) -> None:
    watch = Watch()
    logger = CSVLogger(tmp_path, name="log")
    results = edit(tmp_path / "run", SizeOfWeights(), watch, logger=logger)
    points = {point["after"]: point for point in results["points"]}
    assert sorted(points) == [0, 1, 5, 12]
    assert [points[n]["metrics"]["drift/commits"] for n in points] == [0, 1, 5, 12]
    pristine = points[0]["metrics"]["drift/size"]
    assert "drift/change" not in points[0]["metrics"]
    assert points[12]["before"]["drift/size"] == pristine
    for after in (1, 5, 12):
        metrics = points[after]["metrics"]
        assert metrics["drift/change"] == metrics["drift/size"] - pristine != 0
        assert metrics["drift/size"] == pytest.approx(watch.seen[after - 1], rel=1e-5)
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    place, step = (lines[0].split(",").index(name) for name in ("drift/size", "step"))
    logged = {int(line.split(",")[step]) for line in lines[1:] if line.split(",")[place]}
    assert logged == {0, 1, 5, 12}


def test_single_reports_the_mean_over_edits(tmp_path: Path) -> None:
    results = edit(tmp_path, SizeOfWeights(), protocol="single")
    rows = [json.loads(line) for line in (tmp_path / "measures.jsonl").read_text().splitlines()]
    each = [row["values"]["drift/change"] for row in rows if row["after"] == 1]
    assert len(each) == 12
    assert [row["edits"] for row in rows[1:3]] == [["fact-0"], ["fact-1"]]
    assert results["points"][1]["metrics"]["drift/change"] == pytest.approx(sum(each) / 12)


@pytest.mark.slow
@pytest.mark.parametrize("fail_at", ["fact-0", "fact-4", "fact-6", "fact-11"])
def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(
    tmp_path: Path, fail_at: str
) -> None:
    whole = edit(tmp_path / "whole", SizeOfWeights())
    with pytest.raises(RuntimeError, match="planted"):
        edit(tmp_path / "cut", SizeOfWeights(), fail_at=fail_at)
    resumed = edit(tmp_path / "cut", SizeOfWeights(), ckpt_path="last")
    assert resumed["points"] == whole["points"]
    measured = [(tmp_path / run / "measures.jsonl").read_bytes() for run in ("cut", "whole")]
    assert measured[0] == measured[1]


def test_a_callback_that_watches_two_runs_starts_anew(tmp_path: Path) -> None:
    callback = SizeOfWeights()
    first = edit(tmp_path / "one", callback)
    assert edit(tmp_path / "two", callback)["points"] == first["points"]


def test_facts_of_a_user_are_asked_in_our_loop_too(tmp_path: Path) -> None:
    probe = {"kind": "known_fact", "prompt": "the capital of land9 is", "answers": "city3"}
    asked = EditEvaluation(probes=[probe], modes=("tf",), prefix="mine/")
    results = edit(tmp_path, asked)
    last = results["points"][-1]["metrics"]
    before = results["points"][0]["metrics"]
    assert last["mine/drift.known/nll@tf"] == pytest.approx(
        last["mine/known/nll@tf"] - before["mine/known/nll@tf"]
    )


def test_in_a_foreign_training(tmp_path: Path) -> None:
    run = trainer(tmp_path, SizeOfWeights(every_n_steps=4, directory=str(tmp_path / "rows")))
    run.fit(FineTuning(), loader(), loader(1))
    assert run.callback_metrics["drift/change"] != 0
    names = sorted(path.name for path in (tmp_path / "rows").iterdir())
    assert names == [f"step-{step:08d}.jsonl" for step in (0, 4, 8, 12, 16)]


def test_shares_cover_every_item_once() -> None:
    found = [
        EvalContext(0, torch.nn.Linear(1, 1), None, rank=rank, world_size=3).map_sharded(
            "ab", lambda share: [letter.upper() for letter in share]
        )
        for rank in range(3)
    ]
    assert found == [[(0, "A")], [(1, "B")], []]
