"""Masks, overlaps and sums of MEMOIR, by hand."""

import pytest
import torch

from lightning_edit.editors.memory.residual_memory import ResidualMemory, ResidualMemoryAdapter
from lightning_edit.edits.delta import Delta
from lightning_edit.functional.top_hash import overlaps, top_hash
from lightning_edit.inference.model_call import ModelCall


def test_a_mask_is_the_image_of_the_largest_features() -> None:
    features = torch.tensor([[0.0, -5.0, 1.0, 4.0], [3.0, 2.0, 0.0, 0.0]])
    permutation = torch.tensor([3, 1, 0, 2])
    assert top_hash(features, permutation, 2).tolist() == [[1, 2], [1, 3]]


def test_overlaps_are_shares_of_a_mask() -> None:
    masks, stored = torch.tensor([[0, 1, 4, 5]]), torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    assert overlaps(masks, stored, 9).tolist() == [[0.5, 0.5]]
    assert overlaps(stored[:1], stored, 9).tolist() == [[1.0, 0.0]]


def edit(name: str, columns: list[int], value: float, masks: list[list[int]]) -> Delta:
    state = {
        "prompt": torch.tensor([[ord(name), -1]]),
        "columns": torch.tensor([[*columns, -1]]),
        "values": torch.cat(
            [torch.full((1, 2, len(columns)), value), torch.full((1, 2, 1), -1)], 2
        ),
        "masks": torch.tensor([[*masks, [-1, -1]]]),
        "background": torch.tensor([[value, 0.0, 0.0, 0.0]]),
    }
    return Delta((name,), state=state)


FIRST = edit("a", [0, 1, 2], 1.0, [[0, 1], [1, 2]])
SECOND = edit("b", [2, 3], 10.0, [[2, 3], [1, 2]])


def memory(*edits: Delta) -> ResidualMemory:
    found = ResidualMemory((2, 4))
    for one in edits:
        found.add(one)
    return found


def test_what_edits_write_is_summed_and_masks_are_stored_once() -> None:
    both = memory(FIRST, SECOND)
    assert both.matrix.tolist() == [[1.0, 1.0, 11.0, 10.0]] * 2
    assert [mask.tolist() for mask in both.masks] == [[0, 1], [1, 2], [2, 3]]
    assert both.background is not None
    assert both.background.tolist() == [1.0, 0.0, 0.0, 0.0]  # one for all: that of the first
    assert torch.equal(memory(SECOND).matrix, both.matrix - memory(FIRST).matrix)


def test_an_edit_of_the_same_prompt_takes_the_place_of_the_earlier_one() -> None:
    again = edit("a", [0, 3], 5.0, [[0, 3]])
    found = memory(FIRST, SECOND, again)
    assert torch.equal(found.matrix, memory(SECOND, again).matrix)
    assert [mask.tolist() for mask in found.masks] == [[2, 3], [1, 2], [0, 3]]
    assert found.background is not None
    assert found.background.tolist() == [1.0, 0.0, 0.0, 0.0]  # masks were hashed with it
    assert torch.equal(found.without([ord("a")]).matrix, memory(SECOND).matrix)
    assert found.without([1]) is found


@pytest.mark.parametrize(("threshold", "read"), [(0.5, True), (0.6, False)])
def test_a_prompt_reads_through_the_stored_mask_it_is_most_like(
    threshold: float, read: bool
) -> None:
    adapter = ResidualMemoryAdapter(
        memory(FIRST, SECOND), lambda features: top_hash(features, torch.arange(4), 2), threshold
    )
    hidden = torch.tensor([[[5.0, 0.0, 0.0, 7.0], [9.0, 9.0, 9.0, 9.0]]])  # ends at its first token
    call = ModelCall(torch.tensor([0]), torch.ones(1, 2).bool(), True, {}, packed=False)
    found = adapter.act(hidden, torch.zeros(1, 2, 2), call)
    # Its own mask is 0 and 3; of the stored ones 0, 1 is the first to share a half.
    assert found.tolist() == ([[[5.0, 5.0], [18.0, 18.0]]] if read else [[[0.0, 0.0]] * 2])
