"""Margins, TIES, shards and thresholds of WISE, by hand."""

from dataclasses import replace

import pytest
import torch

from lightning_edit.editors import WISE
from lightning_edit.editors.memory.side_memory import (
    ReadMemory,
    SideMemory,
    SideMemoryAdapter,
    activations,
)
from lightning_edit.edits.delta import Delta
from lightning_edit.functional.side_memory import margin_loss, ties
from lightning_edit.inference.model_call import ModelCall
from tests.toy import toy_model, toy_requests, toy_tokenizer


def test_margins_count_only_the_rows_that_violate_them() -> None:
    edited, unrelated = torch.tensor([18.0, 30.0, 12.0]), torch.tensor([4.0, 9.0])
    # alpha: 9 - 5. beta: mean of 2 and 8. gamma: of 12 - 4 (2), 18 - 9 (1) and 12 - 9 (7).
    assert float(margin_loss(edited, unrelated, (5.0, 20.0, 10.0))) == pytest.approx(
        4.0 + 5.0 + (2.0 + 1.0 + 7.0) / 3
    )
    assert float(margin_loss(torch.tensor([40.0]), torch.tensor([1.0]), (5.0, 20.0, 10.0))) == 0.0


def test_ties_trims_elects_and_averages_those_that_agree() -> None:
    updates = torch.tensor([[[5.0, -1.0], [2.0, 0.1]], [[3.0, 4.0], [-6.0, 0.2]]])
    # Of each two entries of four stay: 5, 2 and 4, -6.
    assert ties(updates, 0.5).tolist() == [[5.0, 4.0], [-6.0, 0.0]]
    assert ties(updates, 1.0).tolist() == [[4.0, 4.0], [-6.0, pytest.approx(0.15)]]
    with pytest.raises(ValueError, match="density"):
        ties(updates, 0.0)


def test_activations_are_norms_of_what_a_memory_adds() -> None:
    change, output = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, -5.0]]])
    assert activations(change, output, "weights", torch.relu).tolist() == [[5.0]]
    # relu(4, -1) - relu(1, -5) = (3, 0)
    assert activations(change, output, "outputs", torch.relu).tolist() == [[3.0]]


def test_an_activation_has_a_gradient_where_a_memory_begins() -> None:
    change = torch.zeros(1, 1, 2, requires_grad=True)
    activations(change, torch.zeros(1, 1, 2), "weights", torch.relu).sum().backward()
    assert change.grad is not None
    assert change.grad.tolist() == [[[0.0, 0.0]]]


def delta(name: str, shard: int, values: list[float], activation: float) -> Delta:
    state = {
        "values": torch.tensor([values]),
        "shard": torch.tensor([shard]),
        "activation": torch.tensor([activation]),
    }
    return Delta((name,), state=state)


def memory(*deltas: Delta, per_memory: int = 2) -> SideMemory:
    cells = {0: [0, 1], 1: [1, 2], 2: [3, 0], 3: [2, 3]}
    found = SideMemory(lambda shard: torch.tensor(cells[shard]), (2, 2), 2, per_memory, 1.0)
    for one in deltas:
        found.add(one)
    return found


A, B = delta("a", 0, [1.0, 2.0], 7.0), delta("b", 0, [1.0, 0.0], 9.0)
C, D = delta("c", 1, [4.0, 3.0], 5.0), delta("d", 1, [0.0, 1.0], 6.0)
E = delta("e", 2, [8.0, 8.0], 4.0)


def test_full_shards_merge_and_the_lowest_activation_counts() -> None:
    assert [memory(A).next_shard, memory(A, B).next_shard] == [0, 1]
    assert memory(A, C, D).next_shard == 0  # b was undone
    half = memory(A, B, C).memories()
    assert [one.update.tolist() for one in half] == [
        [[2.0, 2.0], [0.0, 0.0]],
        [[0.0, 4.0], [3.0, 0.0]],
    ]
    assert [one.lowest for one in half] == [7.0, 5.0]
    merged, rest = memory(A, B, C, D, E).memories()
    assert merged.update.tolist() == [[2.0, 3.0], [4.0, 0.0]]
    assert (merged.lowest, rest.lowest) == (5.0, 4.0)
    assert rest.update.tolist() == [[8.0, 0.0], [0.0, 8.0]]


def test_one_memory_of_all_shards() -> None:
    (one,) = memory(A, B, C, per_memory=0).memories()
    assert one.update.tolist() == [[2.0, 3.0], [3.0, 0.0]]
    assert one.lowest == 5.0


def test_a_prompt_reads_the_memory_that_it_activates_most_above_its_threshold() -> None:
    one = ReadMemory(torch.tensor([[1.0, 0.0]]), 4.0)
    two = ReadMemory(torch.tensor([[0.0, 3.0]]), 12.0)
    adapter = SideMemoryAdapter([one, two], 0.5, "weights", torch.relu)
    hidden = torch.tensor(
        [
            [[3.0, 0.0], [3.0, 0.0], [99.0, 99.0]],  # 3 and 0: the first
            [[3.0, 2.5], [3.0, 2.5], [0.0, 0.0]],  # 3 and 7.5: the second
            [[1.0, 1.0], [1.0, 1.0], [99.0, 99.0]],  # 1 and 3: below 2 and 6
            [[4.0, 1.5], [4.0, 1.5], [0.0, 0.0]],  # 4 and 4.5: the first, the second is below 6
        ]
    )
    call = ModelCall(torch.full((4,), 1), torch.ones(4, 3).bool(), True, {}, packed=False)
    output = torch.zeros(4, 3, 1)
    assert adapter.choose(hidden, output, call).tolist() == [0, 1, -1, 0]
    changed = adapter.act(hidden, output, call)
    assert changed[..., 0].tolist() == [[3, 3, 99], [7.5, 7.5, 0], [0, 0, 0], [4, 4, 0]]


def test_probes_that_score_an_edit_are_not_trained_on() -> None:
    editor = WISE(layer=0, templates=[])
    editor.bind(toy_model(), toy_tokenizer())
    (scored,) = toy_requests(1)
    assert [probe.aspect for probe in scored.probes] == ["locality"]
    rows, bare = (editor.training_rows(one, 0).rows for one in (scored, replace(scored, probes=())))
    assert torch.equal(rows.ids, bare.ids)
    with pytest.raises(ValueError, match="unrelated"):
        WISE(unrelated=[])
