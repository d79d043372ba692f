"""Data modules: splits without facts in common, limits, seeds, loaders that Lightning can use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_edit import datamodules
from lightning_edit.datamodules import (
    CounterFactDataModule,
    EditDataModule,
    JSONLDataModule,
    KnowEditDataModule,
    ZsREDataModule,
)
from lightning_edit.datamodules.files import split_by_fact
from lightning_edit.datamodules.sources import local_file
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest
from tests.datamodules import records


def facts(folder: Path, count: int, name: str = "own.jsonl") -> str:
    made = [
        {"prompt": f"Town{n // 2} number {n} lies in", "target": "Peru", "subject": f"Town{n // 2}"}
        for n in range(count)
    ]
    return records.write(folder / name, made)


@pytest.mark.parametrize(
    ("module", "record"),
    [
        (ZsREDataModule, records.ZSRE_HOP),
        (CounterFactDataModule, records.ROME),
        (CounterFactDataModule, records.EASYEDIT),
        (KnowEditDataModule, records.KNOWEDIT),
        (JSONLDataModule, records.OWN),
    ],
)
def test_each_set_streams_its_file(tmp_path: Path, module: Any, record: Any) -> None:
    data = module(records.write(tmp_path / "a.jsonl", [record]))
    data.setup("edit")
    assert [request.subject in request.prompt for request in data.edit_requests()] == [True]
    other = records.ZSRE if record is not records.ZSRE_HOP else records.ROME
    wrong = module(records.write(tmp_path / "b.jsonl", [other]))
    with pytest.raises(DataError, match="choose the data set of that form"):
        wrong.edit_requests()


def test_path_is_the_test_split_and_training_asks_for_a_source(tmp_path: Path) -> None:
    data = JSONLDataModule(facts(tmp_path, 6), batch_size=4)
    assert [len(batch) for batch in data.test_dataloader()] == [4, 2]
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match=r"give `train_path` .*or divide `path` .*fractions"):
        data.setup("fit")


def test_limit_takes_the_first_of_every_split(tmp_path: Path) -> None:
    path = facts(tmp_path, 6)
    data = JSONLDataModule(path, train_path=facts(tmp_path, 8, "train.jsonl"), limit=3)
    assert [request.id for request in data.edit_requests()] == ["fact-1", "fact-2", "fact-3"]
    assert len(data.requests("train")) == 3


def test_fractions_divide_by_fact_and_by_seed(tmp_path: Path) -> None:
    path = facts(tmp_path, 40)

    def parts(seed: int) -> list[list[EditRequest]]:
        data = JSONLDataModule(path, fractions=(0.5, 0.25, 0.25), seed=seed)
        return [data.requests(split) for split in ("train", "val", "test")]

    assert [len(part) for part in parts(0)] == [20, 10, 10]
    subjects = [{request.subject for request in part} for part in parts(0)]
    assert not subjects[0] & subjects[1]
    assert not (subjects[0] | subjects[1]) & subjects[2]
    assert parts(0) == parts(0)
    assert parts(0) != parts(1)


def test_a_case_is_not_torn_apart() -> None:
    requests = [EditRequest(str(n), f"P{n} is", "x", f"P{n}", case="one") for n in range(5)]
    assert sorted(len(part) for part in split_by_fact(requests, (0.4, 0.3, 0.3), 0)) == [0, 0, 5]


def test_seed_decides_the_order_of_training_only(tmp_path: Path) -> None:
    path = facts(tmp_path, 12)

    def order(seed: int) -> list[str]:
        data = JSONLDataModule(path, train_path=path, seed=seed)
        return [batch[0].id for batch in data.train_dataloader()]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))


def test_hash_covers_requests_and_probes(tmp_path: Path) -> None:
    def digest(record: Any, **options: Any) -> str:
        return JSONLDataModule(records.write(tmp_path / "a.jsonl", [record]), **options).data_hash()

    assert digest(records.OWN) == digest(records.OWN, batch_size=8, seed=3)
    probe = {**records.OWN["probes"][0], "answers": "the attic"}
    assert digest(records.OWN) != digest({**records.OWN, "probes": [probe]})
    assert len(digest(records.OWN)) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "`limit` of a data set must be a number of at least 1"),
        ({"batch_size": 0}, "`batch_size` of a data set must be a number of at least 1"),
        ({"num_workers": -1}, "`num_workers` of a data set must be 0 or more"),
        ({"split": "dev"}, "`split` of a data set must be one of train, val, test; got 'dev'"),
        ({"fractions": (0.5, 0.1, 0.1)}, "`fractions` must be three shares .*add up to 1"),
        (
            {"fractions": (0.8, 0.1, 0.1), "train_path": "x"},
            "`train_path` and `val_path` cannot be given as well",
        ),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    data = JSONLDataModule("facts.jsonl", **options)
    with pytest.raises(DataError, match=message):
        data.setup("edit")


def test_an_empty_split_is_an_error_where_it_is_needed(tmp_path: Path) -> None:
    data = JSONLDataModule(facts(tmp_path, 2), fractions=(1.0, 0.0, 0.0))
    with pytest.raises(DataError, match="no requests in its test split; choose another `split`"):
        data.edit_requests()


def test_what_was_left_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = records.write(tmp_path / "a.json", [records.ZSRE, {**records.ZSRE, "alt": ""}])
    assert len(ZsREDataModule(path).edit_requests()) == 1
    assert "1 × no new answer, record left out" in caplog.text


def test_names_are_lazy_and_complete() -> None:
    assert set(datamodules.__all__) <= set(dir(datamodules))
    for name in datamodules.__all__:
        assert issubclass(getattr(datamodules, name), EditDataModule)
    with pytest.raises(AttributeError, match="ZsRe"):
        _ = datamodules.ZsRe


class Counting(LightningModule):
    """Counts the requests it is given, and insists on plain lists of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        assert isinstance(batch, list)
        self.seen += [request.id for request in batch]
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen += [f"val {request.id}" for request in batch]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`")
def test_a_trainer_trains_on_it(tmp_path: Path) -> None:
    data = JSONLDataModule(facts(tmp_path, 20), fractions=(0.8, 0.2, 0.0), batch_size=4)
    module = Counting()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=data)
    assert len(module.seen) == 20
    assert sum(name.startswith("val ") for name in module.seen) == 4


def test_sources_on_this_machine(tmp_path: Path) -> None:
    path = facts(tmp_path, 2)
    assert local_file(path) == Path(path)
    # The shape of a hub name, but it says it is a file: the reader reports that it is not there.
    assert local_file("data/facts.json") == Path("data/facts.json")
    with pytest.raises(DataError, match="no such file; check the path"):
        JSONLDataModule("data/facts.json").edit_requests()


def test_sources_elsewhere_need_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot be loaded .*or download the file elsewhere"):
        local_file("someone/facts")
    with pytest.raises(DataError, match=r"cannot be loaded .*or download the file elsewhere"):
        local_file("someone/facts:facts.json")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["README.md", "facts.jsonl"], "facts.jsonl"),
        (["a.json", "b.json"], "several files; choose one as someone/facts:FILE.*a.json, b.json"),
        (["facts.parquet", "README.md"], "facts.parquet"),
        (["facts.csv"], "facts.csv"),
        (["facts.txt"], "no JSON, JSON Lines, CSV, TSV or Parquet file; export it as JSON Lines"),
    ],
)
def test_hub_names_lead_to_the_one_data_file(
    names: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, file, **_: f"/cache/{file}")
    if expected in names:
        assert local_file("someone/facts@main") == Path("/cache", expected)
    else:
        with pytest.raises(DataError, match=expected):
            local_file("someone/facts")
