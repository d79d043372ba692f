"""Scores of a run reach loggers, checkpoints and early stopping, as in any Lightning training."""

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_edit.edits.journal import Journal
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer


class Notebook(Logger):
    """Somebody's own logger: it keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.settings: dict[str, Any] = {}
        self.saved = 0

    @property
    def name(self) -> str:
        return "notebook"

    @property
    def version(self) -> str:
        return "1"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.settings |= dict(params)

    def save(self) -> None:
        self.saved += 1


def trainer(**options: Any) -> EditTrainer:
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    return EditTrainer(**(quiet | options))


def edit(edits: EditTrainer, run: Path, fail_at: str | None = None, **options: Any) -> Any:
    editor = ToyEditor(fail_at).bind(toy_model(), toy_tokenizer())
    options = {"modes": ("tf",), "eval_at": [1, 5, "end"]} | options
    return edits.edit(editor, ToyData(12), run=str(run), **options)


def metrics_of(results: Any) -> dict[int, dict[str, float]]:
    return {point["after"]: point["metrics"] for point in results["points"]}


def test_every_score_of_every_point_is_in_the_csv_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="log")
    points = metrics_of(edit(trainer(logger=logger), tmp_path / "run"))
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = {int(row.pop("step")): row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(points) == [0, 1, 5, 12]
    for after, metrics in points.items():
        logged = {name: float(text) for name, text in rows[after].items() if text}
        assert logged == pytest.approx(metrics)


def test_single_logs_the_means_so_far(tmp_path: Path) -> None:
    logger = Notebook()
    edits = trainer(logger=logger)
    points = metrics_of(edit(edits, tmp_path, protocol="single", batch_size=5))
    assert [step for step, _ in logger.metrics] == list(range(13))
    assert logger.metrics[0][1] == pytest.approx(points[0])
    assert logger.metrics[-1][1] == pytest.approx(points[1])
    assert logger.metrics[1][1] != pytest.approx(points[1])
    for name, value in points[1].items():
        assert float(edits.callback_metrics[name]) == pytest.approx(value, rel=1e-6)
    assert logger.saved >= 13
    assert logger.settings["editor"]["class"] == "ToyEditor"
    assert logger.settings["protocol"] == "single"


@pytest.mark.slow
def test_a_resumed_run_logs_the_means_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut, rest = Notebook(), Notebook(), Notebook()
    options: dict[str, Any] = {"protocol": "single", "checkpoint_every": 3}
    edit(trainer(logger=whole), tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="planted"):
        edit(trainer(logger=cut), tmp_path / "cut", fail_at="fact-7", **options)
    edit(trainer(logger=rest), tmp_path / "cut", ckpt_path="last", **options)
    assert [step for step, _ in rest.metrics] == [7, 8, 9, 10, 11, 12]
    assert rest.metrics == whole.metrics[7:]


def test_early_stopping_ends_a_run_at_an_evaluation_point(tmp_path: Path) -> None:
    stop = EarlyStopping("reliability/nll@tf", mode="max", patience=1, min_delta=1e6)
    edits = trainer(callbacks=[stop])
    results = edit(edits, tmp_path, eval_at=[2, 4, 6, 8])
    assert sorted(metrics_of(results)) == [0, 2, 4]
    assert len(Journal(tmp_path / "ledger").active()) == 4
    assert results["status"] == "interrupted"
    assert results["events"][0]["by"] == "EarlyStopping"


def test_the_best_checkpoint_by_a_score_can_be_resumed(tmp_path: Path) -> None:
    best = ModelCheckpoint(monitor="reliability/nll@tf", filename="best")
    points = metrics_of(edit(trainer(callbacks=[best]), tmp_path, eval_at=[3, 6, 9, "end"]))
    scored = {n: metrics["reliability/nll@tf"] for n, metrics in points.items() if n}
    lowest = min(scored, key=scored.__getitem__)
    assert lowest != 12, "the last point is the best one, so this shows nothing"
    assert float(best.best_model_score or 0) == pytest.approx(scored[lowest], rel=1e-6)
    assert best.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    # Going back to it drops the later edits, and makes them again.
    more = trainer(callbacks=[ModelCheckpoint(monitor="reliability/nll@tf", filename="best")])
    options = {"eval_at": [3, 6, 9, "end"], "ckpt_path": best.best_model_path}
    again = edit(more, tmp_path, **options)
    assert metrics_of(again)[12] == points[12]


def test_one_trainer_runs_two_streams(tmp_path: Path) -> None:
    best = ModelCheckpoint(monitor="reliability/nll@tf", filename="best")
    edits = trainer(callbacks=[best])
    model = toy_model()
    pristine = weights_hash(model)
    hashes = []
    for name in ("one", "two"):
        model = toy_model()
        assert weights_hash(model) == pristine
        editor = ToyEditor().bind(model, toy_tokenizer())
        results = edits.edit(editor, ToyData(12), run=str(tmp_path / name), modes=("tf",))
        assert sorted(metrics_of(results)) == [0, 12]
        assert best.dirpath == str(tmp_path / name / "checkpoints")
        assert (tmp_path / name / "checkpoints" / "last.ckpt").exists()
        hashes.append(weights_hash(model))
    assert hashes[0] == hashes[1] != pristine
