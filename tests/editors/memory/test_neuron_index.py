"""Clusters of MELO's index, by hand."""

from typing import Any

import pytest
import torch

from lightning_edit.editors import MELO
from lightning_edit.editors.memory.neuron_index import NO_BLOCK, NeuronIndex


def index(*batches: list[tuple[float, int]]) -> NeuronIndex:
    found = NeuronIndex()
    for batch in batches:
        keys = torch.tensor([[place, 0.0] for place, _ in batch])
        found.insert(keys, [(label,) for _, label in batch], 1.0)
    return found


def blocks(found: NeuronIndex, *places: float) -> list[int]:
    return found.look_up(torch.tensor([[place, 0.0] for place in places]))


def test_a_query_reads_the_block_of_the_nearest_member() -> None:
    found = index([(0.0, 1)], [(1.5, 1)], [(9.0, 2)])
    assert [one.radius for one in found.clusters] == [1.0, 1.0]
    assert found.clusters[0].centre.tolist() == [0.75, 0.0]
    assert blocks(found, 0.0, 0.7, 0.8, 1.75, 1.8, 9.9) == [0, 0, 1, 1, NO_BLOCK, 2]


def test_a_cluster_grows_with_its_members() -> None:
    found = index([(0.0, 1)], [(1.5, 1)], [(2.7, 1)])
    assert found.clusters[0].centre.tolist() == pytest.approx([1.4, 0.0])
    assert found.clusters[0].radius == pytest.approx(1.4)


def test_two_answers_meet_in_the_middle_and_members_outside_are_forgotten() -> None:
    found = index([(0.0, 1)], [(1.5, 1)], [(2.25, 2)])
    # The centre is at 0.75 and the new key 1.5 away.
    assert [one.radius for one in found.clusters] == pytest.approx([0.75 - 1e-5, 0.75 + 1e-5])
    assert [key.tolist() for key in found.forgotten] == [[0.0, 0.0], [1.5, 0.0]]
    assert found.conflicts == 1
    # Without a member a cluster stays, and its prompts read nothing.
    assert blocks(found, 0.75, 2.0) == [NO_BLOCK, 2]


def test_the_same_prompt_edited_again_is_the_newest_edit() -> None:
    found = index([(5.0, 1)], [(5.0, 2)])
    assert len(found.clusters) == 1
    assert blocks(found, 5.0, 5.9) == [1, 1]


def test_a_copy_stays_as_it_is() -> None:
    found = index([(0.0, 1)])
    copy = found.copy()
    found.insert(torch.tensor([[0.5, 0.0]]), [(2,)], 1.0)
    assert blocks(copy, 0.5) == [0]
    assert blocks(found, 0.5) == [1]


@pytest.mark.parametrize("wrong", [{"radius": 0.0}, {"radius_share": 0.0}, {"targets": []}])
def test_settings_that_would_be_read_as_others_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MELO(**wrong)
