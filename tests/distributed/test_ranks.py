"""What the processes of a run do together: shares, errors, agreement, and one that hangs."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_edit.distributed.one_process import ALONE
from lightning_edit.distributed.ranks import Ranks
from lightning_edit.exceptions import SolveError
from tests.forks import Forks


class OddError(Exception):
    """An error that cannot be rebuilt from its arguments."""

    def __init__(self, one: str, two: int) -> None:
        super().__init__(one)


def told(call: Callable[[], Any]) -> list[Any]:
    try:
        return ["returned", call()]
    except Exception as error:  # noqa: BLE001  # whatever is raised is told
        return [type(error).__name__, str(error)]


def fails(item: int) -> int:
    if item in (2, 4):
        raise SolveError(f"item {item}")
    return item


def odd(item: int) -> None:
    if item == 1:
        raise OddError("cannot be rebuilt", 2)


def broken() -> None:
    raise OSError(28, "No space left on device")


def work_together(folder: str, size: int) -> None:
    """Do everything once, as one of three processes; the last of them hangs at the end."""
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    ranks, ran = Ranks(5.0), list[int]()
    found: dict[str, Any] = {}

    def work(item: int) -> dict[str, Any]:
        ran.append(item)
        return {"item": item, "row": torch.full((item,), float(item))}

    for number in (0, 1, 2, 5, 8):
        ran.clear()
        results = ranks.deal(range(number), work)
        found[f"deal {number}"] = [[one["item"], one["row"].tolist()] for one in results]
        found[f"ran {number}"] = list(ran)
    found["error"] = told(lambda: ranks.deal(range(5), fails))
    found["odd"] = told(lambda: ranks.deal(range(3), odd))
    found["first"] = told(lambda: ranks.first(lambda: [rank, "written"]))
    found["broken"] = told(lambda: ranks.first(broken))
    found["same"] = ranks.same({"clock": rank})
    found["agree"] = told(lambda: ranks.require_same("it", {"a": "1", "b": "2"}))
    found["differ"] = told(lambda: ranks.require_same("it", {"a": "1", "b": str(rank // 2)}))
    with ranks.apart():
        mine = torch.ones(1)
        dist.all_reduce(mine)
        found["apart"] = [dist.get_world_size(), float(mine), len(ranks.deal([1, 2, 3], str))]
    found["together"] = dist.get_world_size()
    if rank != size - 1:
        begin = time.monotonic()
        found["hang"] = told(ranks.wait)
        found["seconds"] = time.monotonic() - begin
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    if rank == size - 1:
        time.sleep(8)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> list[dict[str, Any]]:
    """What each of three processes has found."""
    folder = tmp_path_factory.mktemp("ranks")
    forks.run(work_together, folder, 3, ranks=3)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.slow
def test_whole_items_are_dealt_and_gathered_in_order(found: list[dict[str, Any]]) -> None:
    for one in found:
        for number in (0, 1, 2, 5, 8):
            assert one[f"deal {number}"] == [[n, [float(n)] * n] for n in range(number)]
    assert [one["ran 5"] for one in found] == [[0], [1, 4], [2, 3]]
    # The way back is dealt backwards: of 8 sorted by length each rank gets long and short ones.
    assert [one["ran 8"] for one in found] == [[0, 5, 6], [1, 4, 7], [2, 3]]
    assert [one["ran 2"] for one in found] == [[0], [1], []]
    # One item is repeated by all: nothing is sent.
    assert [one["ran 1"] for one in found] == [[0]] * 3


@pytest.mark.slow
def test_errors_are_those_of_one_process_on_every_rank(found: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(found):
        assert one["error"] == ["SolveError", "item 2"]
        assert one["broken"] == ["OSError", "[Errno 28] No space left on device"]
        own = ["OddError", "cannot be rebuilt"]
        others = ["RankLostError", "rank 1 failed with OddError: cannot be rebuilt"]
        assert one["odd"] == (own if rank == 1 else others)


@pytest.mark.slow
def test_ranks_agree_with_the_first_or_say_who_differs(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["first"] == ["returned", [0, "written"]]
        assert one["same"] == {"clock": 0}
        assert one["agree"] == ["returned", None]
        kind, text = one["differ"]
        assert kind == "RanksDifferError"
        assert text.startswith("it: rank 2 has computed another b than rank 0")


@pytest.mark.slow
def test_repeated_work_sees_one_process(found: list[dict[str, Any]]) -> None:
    assert [one["apart"] for one in found] == [[1, 1.0, 3]] * 3
    assert [one["together"] for one in found] == [3] * 3


@pytest.mark.slow
def test_a_rank_that_hangs_is_lost_after_the_time_limit(found: list[dict[str, Any]]) -> None:
    for rank in range(2):
        kind, text = found[rank]["hang"]
        assert kind == "RankLostError"
        assert text.startswith(f"rank {rank} of 3 lost another process of the run")
        assert "rank_timeout" in text
        assert "resume the run" in text
        assert found[rank]["seconds"] < 11


def test_one_process_does_its_own_work() -> None:
    assert ALONE.deal(iter([1, 2]), str) == ["1", "2"]
    assert ALONE.first(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        ALONE.deal([0], lambda item: 1 // item)
