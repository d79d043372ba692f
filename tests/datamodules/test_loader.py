"""Loaders whose batches know epoch and step, with any number of workers and processes."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.data import _update_dataloader
from torch.utils.data import DistributedSampler

from lightning_edit.datamodules.loader import (
    EpochSampler,
    EpochShuffle,
    RequestDataset,
    RequestLoader,
    StepBatchSampler,
    StepPlaces,
    StepRequests,
    request_loader,
)
from lightning_edit.types import EditRequest
from tests.toy import ToyData, toy_requests

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]

Seen = tuple[str, int, int, int, tuple[str, ...]]


@dataclass(frozen=True)
class Note:
    """Collate function that tells what it was given."""

    stage: str
    size: int

    def __call__(self, requests: list[EditRequest]) -> Seen:
        assert isinstance(requests, StepRequests)
        ids = tuple(request.id for request in requests)
        return self.stage, self.size, requests.epoch, requests.batch_idx, ids


def epochs(workers: int, order: EpochShuffle | None = None, count: int = 2) -> list[list[Seen]]:
    requests = toy_requests(5)
    loader = request_loader(requests, 2, order, Note("train", 5), workers)
    found = []
    for epoch in range(count):
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]  # as Lightning does
        found.append(list(loader))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_see_epoch_and_step(workers: int) -> None:
    expected = epochs(0, EpochShuffle(5, seed=3))
    assert [seen[2:4] for seen in chain(*expected)] == [(e, b) for e in (0, 1) for b in (0, 1, 2)]
    ids = [[name for seen in epoch for name in seen[4]] for epoch in expected]
    assert ids[0] != ids[1]
    assert sorted(ids[0]) == sorted(ids[1]) == [f"fact-{i}" for i in range(5)]
    assert epochs(workers, EpochShuffle(5, seed=3)) == expected


def test_processes_share_one_order_and_no_request() -> None:
    """As Lightning rebuilds the loader under DDP: a distributed sampler in place of the sampler."""
    data = RequestDataset(toy_requests(6), EpochShuffle(6, seed=1))
    whole = StepBatchSampler(EpochSampler(data), 6, drop_last=False)
    for epoch in (0, 1):
        shares = []
        for rank in (0, 1):
            sampler: Any = DistributedSampler(data, 2, rank, shuffle=True)
            sampler.set_epoch(epoch)
            batches = StepBatchSampler(sampler, 2, drop_last=False)
            found = [data.__getitems__(places) for places in batches]
            assert [(one.epoch, one.batch_idx) for one in found] == [(epoch, 0), (epoch, 1)]
            shares.append([request.id for one in found for request in one])
        whole.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # an EpochSampler
        together = [request.id for request in data.__getitems__(next(iter(whole)))]
        assert [name for pair in zip(*shares, strict=True) for name in pair] == together
        order = EpochShuffle(6, seed=1)
        order.set_epoch(epoch)
        assert together == [f"fact-{number}" for number in order] != sorted(together)


def test_lightning_deals_a_loader_that_was_made_outside_of_its_hooks() -> None:
    """`trainer.fit(module, data.train_dataloader())` on two processes."""
    data = ToyData(5)
    data.batch_size = 2
    seen: list[list[list[str]]] = []
    for rank in (0, 1):
        loader = data.train_dataloader()
        sampler: Any = DistributedSampler(loader.dataset, 2, rank, shuffle=True)  # type: ignore[arg-type]
        dealt = _update_dataloader(loader, sampler, mode=RunningStage.TRAINING)
        assert type(dealt) is RequestLoader
        seen.append([[one.id for one in batch] for batch in dealt])
    (whole,) = request_loader(toy_requests(5), 5, EpochShuffle(5, data.seed))
    order = [one.id for one in whole]
    assert order != sorted(order)
    places = ([0, 2, 4], [1, 3, 0])  # in turn; the first one again where a place is left
    assert [[*first, *second] for first, second in seen] == [
        [order[place] for place in share] for share in places
    ]


class Reading(pl.LightningModule):
    """Keeps the batches of every loop; learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def training_step(self, batch: Any) -> torch.Tensor:
        self.seen["train"].append(batch)
        return self.weight * 0

    def validation_step(self, batch: Any) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: Any) -> None:
        self.seen["test"].append(batch)


class Collating(Reading):
    """Says how its batches are made."""

    def collate_requests(
        self, stage: str, requests: Sequence[EditRequest]
    ) -> Callable[[list[EditRequest]], Seen]:
        return Note(stage, len(requests))


def run(module: Reading, folder: Path, **options: Any) -> ToyData:
    data = ToyData(5)
    data.batch_size = 2
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "default_root_dir": folder, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0, "enable_checkpointing": False, "max_epochs": 2,
    }  # fmt: skip
    trainer = pl.Trainer(**quiet | options)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return data


def test_a_module_gets_the_batches_that_it_asks_for(tmp_path: Path) -> None:
    module = Collating()
    data = run(module, tmp_path)
    assert [seen[:4] for seen in module.seen["train"]] == [
        ("train", 5, epoch, batch) for epoch in (0, 1) for batch in (0, 1, 2)
    ]
    assert {seen[0] for seen in module.seen["val"]} == {"val"}
    assert {seen[0] for seen in module.seen["test"]} == {"test"}
    # Outside a Trainer's run the loaders are what they are for anybody.
    assert [len(batch) for batch in data.test_dataloader()] == [2, 2, 1]


def test_any_other_module_gets_plain_requests(tmp_path: Path) -> None:
    module = Reading()
    run(module, tmp_path)
    for batches in module.seen.values():
        assert all(isinstance(batch[0], EditRequest) for batch in batches)


def test_overfitting_repeats_the_same_batches(tmp_path: Path) -> None:
    module = Collating()
    run(module, tmp_path, overfit_batches=1)
    first, second = module.seen["train"]
    assert first[4] == second[4] == ("fact-0", "fact-1")


class Stopping(Collating):
    """Fails at a batch."""

    def __init__(self, at: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.at = at

    def training_step(self, batch: Any) -> torch.Tensor:
        if batch[2:4] == self.at:
            raise KeyError("stopped")
        return super().training_step(batch)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("at", [(0, 2), (1, 0), (1, 1)])
@pytest.mark.parametrize(
    "saving",
    [{"every_n_train_steps": 1}, {"save_on_train_epoch_end": False}, {}],
    ids=["each step", "each validation", "each epoch"],
)
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_training_goes_on_where_it_was_saved(
    workers: int, at: tuple[int, int], saving: dict[str, Any], tmp_path: Path
) -> None:
    def train(stop: tuple[int, int] | None, ckpt: str | None) -> list[Seen]:
        module, data = Stopping(stop), ToyData(7)
        data.batch_size, data.num_workers = 2, workers
        trainer = pl.Trainer(
            accelerator="cpu", default_root_dir=tmp_path, logger=False, max_epochs=3,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            limit_val_batches=1, val_check_interval=2,
            callbacks=[ModelCheckpoint(tmp_path, save_last=True, **saving)],
        )  # fmt: skip
        try:
            trainer.fit(module, datamodule=data, ckpt_path=ckpt)
        except KeyError:
            assert stop is not None
        return module.seen["train"]

    whole = train(None, None)
    (tmp_path / "last.ckpt").unlink()
    first = train(at, None)
    rest = train(None, "last")
    assert len(first) + len(rest) >= len(whole) == 12
    assert first == whole[: len(first)]
    assert rest == whole[12 - len(rest) :]
    if saving == {"every_n_train_steps": 1}:
        assert first + rest == whole


class Two(ToyData):
    """A shorter and a longer loader, of which the shorter begins again."""

    def train_dataloader(self) -> Any:
        return {"few": super().train_dataloader(), "many": torch.utils.data.DataLoader(range(7))}


class Looking(pl.Callback):
    """Walks the training's loader in a hook."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.train_dataloader is not None
        self.found.append(len(list(trainer.train_dataloader)))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_only_a_resumed_training_begins_inside_an_epoch(tmp_path: Path) -> None:
    module, looking = Collating(), Looking()
    data = run(module, tmp_path, callbacks=[looking])
    assert looking.found == [3, 3]
    loader = data.train_dataloader()
    assert len(list(loader)) == 3
    other = Collating()
    pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, max_epochs=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        limit_val_batches=0,
    ).fit(other, loader)  # fmt: skip
    assert len(other.seen["train"]) == 3
    both = Reading()
    two = Two(5)
    two.batch_size = 2
    pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, max_epochs=2,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0, limit_val_batches=0,
    ).fit(both, datamodule=two)  # fmt: skip
    assert len(both.seen["train"]) == 14


def test_step_batches_travel_to_a_worker_that_is_spawned() -> None:
    sent = StepRequests(toy_requests(2), epoch=4, batch_idx=7)
    got = pickle.loads(pickle.dumps(sent))  # noqa: S301  # our own
    assert (list(got), got.epoch, got.batch_idx) == (list(sent), 4, 7)


@pytest.mark.parametrize("size", [8, 7])
def test_a_batch_knows_the_requests_of_the_step_on_all_processes(size: int) -> None:
    requests, steps = toy_requests(size), []
    for rank in (0, 1):
        data = RequestDataset(requests, EpochShuffle(size, seed=5))
        share = DistributedSampler(data, 2, rank, shuffle=False)
        steps.append(list(StepBatchSampler(share, 2, drop_last=False)))
    for one, other in zip(*steps, strict=True):
        assert sorted(one.beside) == sorted(other.beside) == sorted([*one, *other])
    (alone,) = StepBatchSampler(EpochSampler(requests), size, drop_last=False)
    assert isinstance(alone, StepPlaces)
    assert alone.beside == list(range(size))
    read, order = data.__getitems__(steps[0][0]), list(EpochShuffle(size, seed=5))
    assert [request.id for request in read.beside] == [
        requests[order[place]].id for place in steps[0][0].beside
    ]
