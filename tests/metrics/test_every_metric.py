"""Every metric: against its reference, in parts, merged, carried, resumed, on two processes."""

import json
import os
import random
from pathlib import Path

import pytest
import torch.distributed as dist
from torchmetrics import Metric

import lightning_edit.metrics as library
from tests.forks import Forks
from tests.metrics.cases import CASES
from tests.metrics.tester import assert_close, check, values


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_metric(name: str, seed: int) -> None:
    check(CASES[name], seed)


def test_no_metric_is_left_out() -> None:
    listed = [getattr(library, name) for name in library.__all__]
    metrics = {m.__name__ for m in listed if isinstance(m, type) and issubclass(m, Metric)}
    assert metrics == set(CASES)


def share(folder: str) -> None:
    """Give every metric this process's share of its items, and keep what it says."""
    rank, found = int(os.environ["LOCAL_RANK"]), {}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for split in ("uneven", "empty"):
        for name, case in CASES.items():
            items = case.items(random.Random(5))
            cut = len(items) // 3 if split == "uneven" else len(items)
            metric = case.make()
            case.give(metric, items[:cut] if rank == 0 else items[cut:])
            found[f"{split} {name}"] = values(metric)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_uneven_and_empty_shares_equal_one(tmp_path: Path, forks: Forks) -> None:
    forks.run(share, tmp_path, ranks=2)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for split in ("uneven", "empty"):
            for name, case in CASES.items():
                expected = case.reference(case.items(random.Random(5)))
                assert_close(found[f"{split} {name}"], expected)
