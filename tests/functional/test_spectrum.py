"""What a lower rank keeps of an update, against a singular value decomposition."""

import pytest
import torch

from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.functional.spectrum import (
    energy_of_rank,
    squared_singular_values,
    squared_singular_values_of_product,
)


@pytest.mark.parametrize("shape", [(7, 3, 11), (11, 3, 7), (5, 9, 6), (4, 4, 4)])
def test_product_without_forming_it(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(shape[0], shape[1]), torch.randn(shape[1], shape[2])
    wanted = torch.linalg.svdvals(left.double() @ right.double()).square()
    wanted = wanted[: min(shape)]
    for found in (
        squared_singular_values(left.double() @ right.double()),
        squared_singular_values_of_product(left, right),
    ):
        torch.testing.assert_close(found[: len(wanted)], wanted, rtol=1e-9, atol=1e-12)
        assert float(found[len(wanted) :].sum()) < 1e-9


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_energy_is_what_an_export_of_that_rank_keeps(rank: int) -> None:
    torch.manual_seed(1)
    update = LowRank(torch.randn(8, 5), torch.randn(5, 12))
    ((left, right, kept),) = Delta(("e",), {"w": update}).to_lora(rank).values()
    squared = squared_singular_values_of_product(update.left, update.right)
    assert energy_of_rank(squared, rank) == pytest.approx(kept, abs=1e-9)
    lost = float((left.double() @ right.double() - update.dense()).square().sum())
    assert 1 - lost / update.norm() ** 2 == pytest.approx(kept, abs=1e-5)


def test_nothing_keeps_everything() -> None:
    assert energy_of_rank(squared_singular_values(torch.zeros(3, 4)), 1) == 1.0
