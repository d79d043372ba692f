"""Ready meta-batches from the data module's workers: the same training, bit by bit."""

import json
import pickle
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader

from lightning_edit.datamodules.loader import EpochShuffle, StepRequests, as_list, request_loader
from lightning_edit.editors.hypernetwork.mend import MEND
from lightning_edit.editors.hypernetwork.meta_batch import MetaBatch
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest
from tests.editors.hypernetwork.mending import trainer
from tests.forks import Forks
from tests.toy import ToyData, toy_model, toy_requests, toy_tokenizer

pytestmark = [
    pytest.mark.bits,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]


class Watch(pl.Callback):
    """Keeps what the steps got and what came of them."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.edits: list[tuple[str, ...]] = []
        self.values: list[str] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, _: int
    ) -> None:
        self.kinds.add(type(batch).__name__)
        requests = batch.inner.requests if isinstance(batch, MetaBatch) else batch
        self.edits.append(tuple(request.id for request in requests))
        self.values.append(float(outputs["loss"]).hex())

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int
    ) -> None:
        self.kinds.add(type(batch).__name__)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self.values += [f"{name} {float(value).hex()}" for name, value in sorted(found.items())]


def editor() -> MEND:
    settings: dict[str, Any] = {"rank": 4, "lr": 1e-2, "step_size": 1e-1, "step_size_lr": 1e-2}
    made = MEND(**settings, own_probes=1, other_facts=2, any_wording=True)
    made.bind(toy_model(), toy_tokenizer())
    return made


def data(workers: int = 0) -> ToyData:
    made = ToyData(7)
    made.batch_size, made.num_workers = 2, workers
    return made


def fit(folder: Path, workers: int) -> Watch:
    watch = Watch()
    run = trainer(folder, max_epochs=2, callbacks=[watch])
    run.fit(editor(), datamodule=data(workers))
    return watch


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    return fit(tmp_path_factory.mktemp("ready"), 0)


def test_loaders_of_a_data_module_yield_ready_batches(ready: Watch) -> None:
    assert ready.kinds == {"MetaBatch"}
    assert len(ready.edits) == 8
    assert ready.edits[:4] != ready.edits[4:]
    assert len(set(ready.values)) > 8


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_do_not_change_a_bit(ready: Watch, workers: int, tmp_path: Path) -> None:
    found = fit(tmp_path, workers)
    assert found.kinds == {"MetaBatch"}
    assert (found.edits, found.values) == (ready.edits, ready.values)


class Shuffled(DataLoader[EditRequest]):
    """Anybody's loader of plain requests, in the data module's order."""

    def __init__(self, order: EpochShuffle | None) -> None:
        requests: Any = toy_requests(7)
        super().__init__(requests, 2, sampler=order, collate_fn=as_list)


def test_a_loader_of_plain_requests_trains_the_same(ready: Watch, tmp_path: Path) -> None:
    watch = Watch()
    run = trainer(tmp_path, max_epochs=2, callbacks=[watch])
    run.fit(editor(), Shuffled(EpochShuffle(7, seed=0)), Shuffled(None))
    assert watch.kinds == {"list"}
    assert (watch.edits, watch.values) == (ready.edits, ready.values)


class Stream:
    """Anybody's stream of batches, which has no data set."""

    def __iter__(self) -> Iterator[list[EditRequest]]:
        yield toy_requests(2)


def test_a_loader_without_a_data_set_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="set other_facts to 0"):
        trainer(tmp_path, max_epochs=1).fit(editor(), Stream(), Stream())


def test_the_collate_object_travels_and_needs_the_step() -> None:
    made = editor()
    collate = made.collate_requests("train", toy_requests(7))
    step = StepRequests(toy_requests(2), epoch=1, batch_idx=3)
    sent = pickle.loads(pickle.dumps(collate))  # noqa: S301  # our own
    assert sent(step) == collate(step)
    drawn = [collate(StepRequests(toy_requests(2), epoch, 0)) for epoch in range(8)]
    assert any(one != drawn[0] for one in drawn)
    with pytest.raises(DataError, match="request_loader"):
        collate(toy_requests(2))


def test_a_loader_built_by_hand_yields_the_data_modules_batches() -> None:
    made = editor()
    requests = toy_requests(7)
    loader = request_loader(requests, 2, None, made.collate_requests("val", requests))
    (batch, *_) = list(loader)
    assert isinstance(batch, MetaBatch)
    assert batch.inner.ids == ("fact-0", "fact-1")
    assert batch.to("meta") is batch


def train_together(folder: str) -> None:
    root, watch = Path(folder), Watch()
    run = trainer(root, max_epochs=2, callbacks=[watch], devices=2, strategy="ddp")
    run.fit(editor(), datamodule=data())
    found = {"edits": watch.edits, "kinds": sorted(watch.kinds)}
    outside = Watch()  # loaders that were made outside of Lightning's hooks, of plain requests
    again = trainer(root, max_epochs=2, callbacks=[outside], devices=2, strategy="ddp")
    again.fit(editor(), data().train_dataloader(), data().val_dataloader())
    assert outside.kinds == {"list"}
    assert outside.edits == watch.edits
    (root / f"rank-{run.global_rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_share_the_epochs_order(tmp_path: Path, forks: Forks) -> None:
    forks.run(train_together, tmp_path, ranks=2)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["kinds"] for rank in ranks] == [["MetaBatch"]] * 2
    for epoch in (0, 1):
        # Seven requests, eight places: Lightning repeats the first, so that shares are equal.
        shares = [chain(*rank["edits"][2 * epoch : 2 * epoch + 2]) for rank in ranks]
        order = EpochShuffle(7, seed=0)
        order.set_epoch(epoch)
        places = [f"fact-{index}" for index in order]
        dealt = [name for pair in zip(*shares, strict=True) for name in pair]
        assert dealt == [*places, places[0]]
