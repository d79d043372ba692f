"""One tester for every metric: small data, an independent reference in plain Python, and shares.

A case says how a metric is made, what one item is, how items are given to ``update``, and how the
numbers are computed from items without the library. :func:`check` runs what every metric must do;
the test on two processes runs all cases in one pair of processes.
"""

import copy
import math
import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchmetrics import Metric, MetricCollection


@dataclass(frozen=True)
class Case:
    """A metric under test.

    Args:
        make: Makes the metric.
        items: Makes items from a seed; all of one unit that must stay together are one item.
        give: Calls ``update`` with some items, also with none.
        reference: Computes the values from all items, in plain Python.
    """

    make: Callable[[], Metric]
    items: Callable[[random.Random], list[Any]]
    give: Callable[[Any, Sequence[Any]], None]
    reference: Callable[[Sequence[Any]], dict[str, float]]


def values(metric: Metric) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def assert_close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert math.isclose(found[name], value, rel_tol=1e-9, abs_tol=1e-12), name
        assert math.isfinite(found[name]), name


def check(case: Case, seed: int) -> None:
    """Run what every metric must do on one draw of items."""
    items = case.items(random.Random(seed))
    expected = case.reference(items)
    assert expected, "a case must measure something"
    whole = case.make()
    case.give(whole, items)
    assert_close(values(whole), expected)
    _in_parts(case, items, expected)
    _merged(case, items, expected)
    _carried(case, whole, expected)
    _stopped_in_the_middle(case, items, expected)
    parts = [part for state in whole.metric_state.values() for part in _tensors(state)]
    assert sum(part.numel() for part in parts) < 10_000


def _tensors(state: Any) -> list[Any]:
    """Return the parts of a state: itself, or the tensors of one that is concatenated."""
    return state if isinstance(state, list) else [state]


def _in_parts(case: Case, items: list[Any], expected: dict[str, float]) -> None:
    """One update an item, in another order."""
    metric = case.make()
    for item in random.Random(1).sample(items, len(items)):
        case.give(metric, [item])
    assert_close(values(metric), expected)


def _merged(case: Case, items: list[Any], expected: dict[str, float]) -> None:
    """States of uneven shares and of an empty one add up."""
    cut = len(items) // 3
    first, second, empty = case.make(), case.make(), case.make()
    case.give(first, items[:cut])
    case.give(second, items[cut:])
    case.give(empty, [])
    empty.merge_state(second)
    empty.merge_state(first)
    assert_close(values(empty), expected)


def _carried(case: Case, whole: Metric, expected: dict[str, float]) -> None:
    """Pickled, cloned, moved, in half precision, in a collection; and empty after a reset."""
    assert_close(values(pickle.loads(pickle.dumps(whole))), expected)  # noqa: S301  # ours
    assert_close(values(whole.clone()), expected)
    assert_close(values(copy.deepcopy(whole).half().bfloat16().to("cpu")), expected)
    collection = MetricCollection({"one": whole.clone()})
    assert_close({n: float(v) for n, v in collection.compute().items()}, expected)
    emptied = whole.clone()
    emptied.reset()
    case.give(emptied, [])
    assert emptied.compute() == {}


def _stopped_in_the_middle(case: Case, items: list[Any], expected: dict[str, float]) -> None:
    """States saved after some items and loaded by a new process go on to the same numbers."""
    cut = len(items) // 2
    first, second = case.make(), case.make()
    first.persistent(True)
    second.persistent(True)
    case.give(first, items[:cut])
    saved = copy.deepcopy(first.state_dict())
    assert all(isinstance(part, torch.Tensor) for one in saved.values() for part in _tensors(one))
    second.load_state_dict(saved)
    second._update_count = 1  # what load_state_dict does not set; compute would warn
    case.give(second, items[cut:])
    assert_close(values(second), expected)
