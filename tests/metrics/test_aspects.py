"""The report's numbers: against a reference, in parts, pickled, reset, and on two processes."""

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchmetrics import MetricCollection

from lightning_edit.metrics import AspectScores, summarise
from tests.metrics.outcomes import random_outcomes, reference

ROOT = Path(__file__).parents[2]


def computed(metric: AspectScores) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_reference(seed: int) -> None:
    outcomes = random_outcomes(seed, 20)
    assert summarise(outcomes) == pytest.approx(reference(outcomes), abs=1e-12)


def test_requests_in_any_order_and_any_number_of_updates() -> None:
    outcomes = random_outcomes(7, 30)
    ids = list(dict.fromkeys(outcome.edit_id for outcome in outcomes))
    random.Random(0).shuffle(ids)
    metric = AspectScores()
    for name in ids:
        metric.update([outcome for outcome in outcomes if outcome.edit_id == name])
    assert computed(metric) == pytest.approx(reference(outcomes), abs=1e-12)


def test_a_request_with_many_probes_does_not_outweigh_another() -> None:
    outcomes = [o for o in random_outcomes(1, 40) if o.kind == "neighborhood"]
    by_size: dict[str, list] = {}
    for outcome in outcomes:
        by_size.setdefault(outcome.edit_id, []).append(outcome)
    many = next(rows for rows in by_size.values() if len(rows) == 3)
    one = next(rows for rows in by_size.values() if len(rows) == 1 and rows[0].kept != many[0].kept)
    kept = sum(row.kept for row in many) / 3
    assert summarise([*many, *one])["locality/kept@tf"] == pytest.approx((kept + one[0].kept) / 2)


def test_absent_kinds_have_no_key_and_nothing_is_nan() -> None:
    outcomes = [o for o in random_outcomes(3, 5) if o.kind == "rewrite"]
    names = summarise(outcomes)
    assert {name.split("/")[0] for name in names} == {"reliability"}
    assert "reliability/kept@tf" not in names
    assert all(value == value for value in names.values())
    assert summarise([]) == {}


def test_states_merge() -> None:
    first, second = random_outcomes(1, 4), random_outcomes(2, 9)
    a, b, empty = AspectScores(), AspectScores(), AspectScores()
    a.update(first)
    b.update(second)
    empty.update([])
    a.merge_state(b)
    a.merge_state(empty)
    assert computed(a) == pytest.approx(reference([*first, *second]), abs=1e-12)


def test_pickle_reset_clone_and_collection() -> None:
    outcomes = random_outcomes(4, 6)
    metric = AspectScores()
    metric.update(outcomes)
    assert computed(pickle.loads(pickle.dumps(metric))) == summarise(outcomes)  # noqa: S301  # ours
    assert computed(metric.clone()) == summarise(outcomes)
    assert computed(metric.half()) == summarise(outcomes)  # a half precision module's metrics
    metric.reset()
    metric.update([])
    assert metric.compute() == {}
    collection = MetricCollection({"aspects": AspectScores()})
    collection.update(outcomes)
    assert collection.compute().keys() == summarise(outcomes).keys()


def test_states_are_few_and_sums() -> None:
    metric = AspectScores()
    assert sum(state.numel() for state in metric.metric_state.values()) < 1000
    assert all(isinstance(state, torch.Tensor) for state in metric.metric_state.values())


_WORKER = """
import json, sys
import torch.distributed as dist
from lightning_edit.metrics import AspectScores
from tests.metrics.outcomes import random_outcomes

rank, file, split = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
outcomes = random_outcomes(5, 11)
ids = list(dict.fromkeys(o.edit_id for o in outcomes))
mine = set(ids[rank::2] if split == "uneven" else (ids if rank == 0 else []))
metric = AspectScores()
metric.update([o for o in outcomes if o.edit_id in mine])
print(json.dumps({k: v.item() for k, v in metric.compute().items()}))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("split", ["uneven", "empty"])
def test_two_processes_equal_one(tmp_path: Path, split: str) -> None:
    command = [sys.executable, "-c", _WORKER]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), split],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    expected = pytest.approx(reference(random_outcomes(5, 11)), abs=1e-12)
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert json.loads(output.splitlines()[-1]) == expected
