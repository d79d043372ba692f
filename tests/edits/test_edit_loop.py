"""The edit loop: who is asked for which delta, on which model, and that nothing is left."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.edits.edit_loop import (
    Stopwatch,
    deltas_alone,
    encode_cases,
    find,
    find_alone,
    written_alone,
)
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import NotFiniteError
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditBatch, cases_of
from tests.toy import ToyEditor, toy_model, toy_requests, toy_tokenizer

pytestmark = pytest.mark.bits


class Asked(Editor):
    """A toy editor that keeps what it is asked for, and the model's bits at that moment."""

    def __init__(self, batched: bool) -> None:
        super().__init__()
        self.inner = ToyEditor()
        self.batched = batched  # type: ignore[misc]  # as wrappers do
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.models: list[str] = []

    def on_bind(self) -> None:
        self.inner.bind(self.language_model, self.tokenizer)

    def edit(self, batch: EditBatch) -> Delta:
        self.asked.append(("edit", batch.ids))
        self.models.append(weights_hash(self.language_model))
        return self.inner.edit(batch)

    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        self.asked.append(("independent", batch.ids))
        self.models.append(weights_hash(self.language_model))
        return self.inner.edit_independent(batch)

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        self.inner.on_history(in_force, change)


def material(batched: bool) -> tuple[Asked, Ledger, list[EditBatch]]:
    """Five requests, the second and third one case, in batches of two cases."""
    editor = Asked(batched)
    editor.bind(toy_model(), toy_tokenizer())
    requests = [
        replace(request, case="pair" if number in (1, 2) else None)
        for number, request in enumerate(toy_requests(5))
    ]
    batches = list(encode_cases(toy_tokenizer(), cases_of(requests), 2, seed=9))
    return editor, Ledger(editor.language_model, editor), batches


def names(*numbers: int) -> tuple[str, ...]:
    return tuple(f"fact-{number}" for number in numbers)


def test_batches_divide_no_case() -> None:
    _, _, batches = material(True)
    assert [batch.ids for batch in batches] == [names(0, 1, 2), names(3, 4)]
    assert {batch.seed for batch in batches} == {9}
    assert [case.ids for case in batches[0].cases()] == [names(0), names(1, 2)]


@pytest.mark.parametrize("batched", [True, False])
def test_edits_that_stay_are_found_on_the_model_that_has_the_earlier_ones(batched: bool) -> None:
    editor, ledger, (batch, _) = material(batched)
    for part, delta in find(editor, batch):
        ledger.commit(delta, part.requests)
    one_by_one = [("edit", names(number)) for number in range(3)]
    assert editor.asked == ([("edit", names(0, 1, 2))] if batched else one_by_one)
    assert len(set(editor.models)) == len(editor.models)
    assert ledger.request_ids == names(0, 1, 2)


@pytest.mark.parametrize("batched", [True, False])
def test_cases_alone_share_a_search_and_start_from_the_same_model(batched: bool) -> None:
    editor, ledger, (batch, _) = material(batched)
    pristine = weights_hash(editor.language_model)
    commits = []
    for case, found in find_alone(editor, batch):
        assert weights_hash(editor.language_model) == pristine
        for part, delta in found:
            commits.append(part.ids)
            ledger.commit(delta, part.requests)
        ledger.undo(case.ids)
    assert editor.asked[0] == ("independent", names(0))
    assert commits == [names(0), *([names(1, 2)] if batched else [names(1), names(2)])]
    # The second edit of a case is found with the first in force.
    assert len(set(editor.models)) == (1 if batched else 2)
    assert weights_hash(editor.language_model) == pristine


@pytest.mark.parametrize("batched", [True, False])
def test_studies_get_one_delta_a_case_and_leave_no_trace(batched: bool) -> None:
    editor, ledger, batches = material(batched)
    pristine = weights_hash(editor.language_model)
    seen = []
    for case, trial in written_alone(ledger, deltas_alone(editor, batches)):
        assert trial.delta.request_ids == case.ids
        assert trial.entry is None
        assert ledger.request_ids == ()
        seen.append((case.ids, weights_hash(editor.language_model)))
    assert [ids for ids, _ in seen] == [names(0), names(1, 2), names(3), names(4)]
    assert len({bits for _, bits in seen} | {pristine}) == 5
    assert weights_hash(editor.language_model) == pristine
    assert set(editor.models) == {pristine}
    # A staged edit has the bits of its commit.
    ledger.commit(editor.edit(batches[0].cases()[0]), batches[0].requests[:1])
    assert weights_hash(editor.language_model) == seen[0][1]


def test_how_many_share_a_search_changes_nothing() -> None:
    editor, ledger, batches = material(True)
    requests = [request for batch in batches for request in batch.requests]
    bits = []
    for size in (1, 4):
        cases = encode_cases(toy_tokenizer(), cases_of(requests), size, seed=9)
        found = written_alone(ledger, deltas_alone(editor, cases))
        bits.append([(case.ids, weights_hash(editor.language_model)) for case, _ in found])
    assert bits[0] == bits[1]


def test_a_failure_inside_the_loop_leaves_the_model_alone() -> None:
    editor, ledger, batches = material(True)
    pristine = weights_hash(editor.language_model)

    def fail() -> None:
        for case, _ in written_alone(ledger, deltas_alone(editor, batches)):
            assert weights_hash(editor.language_model) != pristine
            raise RuntimeError(f"planted at {case.ids}")

    with pytest.raises(RuntimeError, match="planted"):
        fail()
    assert weights_hash(editor.language_model) == pristine
    for _ in written_alone(ledger, deltas_alone(editor, batches)):
        break
    assert weights_hash(editor.language_model) == pristine
    (case, delta) = next(deltas_alone(editor, batches))
    (update,) = delta.weights.values()
    assert isinstance(update, LowRank)
    weights = {editor.inner.parameter: replace(update, left=update.left * float("nan"))}
    broken = replace(delta, weights=weights)
    with pytest.raises(NotFiniteError):
        list(written_alone(ledger, [(case, broken)]))
    assert weights_hash(editor.language_model) == pristine


def test_a_stopwatch_counts_the_making_of_items_only() -> None:
    def slow() -> Iterator[int]:
        for number in range(2):
            sum(range(300_000))
            yield number

    watch = Stopwatch()
    for _ in watch.over(slow()):
        begin = watch.wall
        sum(range(3_000_000))
        assert watch.wall == begin
    wall, cpu = watch.take()
    assert wall > 0
    assert cpu > 0
    assert (watch.wall, watch.cpu) == (0.0, 0.0)
