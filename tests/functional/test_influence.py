"""Products of gradients from factors, and the combinations over checkpoints, by hand."""

import torch

from lightning_edit.functional import influence
from lightning_edit.functional.influence import (
    cosines,
    dda_scores,
    factor_products,
    factor_squared_norms,
    tracin_scores,
)


def made(owners: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(len(owners), 5, generator=generator, dtype=torch.float64)
    d = torch.randn(len(owners), 3, generator=generator, dtype=torch.float64)
    return u, d, torch.tensor(owners)


def dense(u: torch.Tensor, d: torch.Tensor, owner: torch.Tensor, count: int) -> torch.Tensor:
    found = [sum((torch.outer(d[i], u[i]) for i in range(len(u)) if owner[i] == n),
                 torch.zeros(3, 5, dtype=u.dtype)) for n in range(count)]  # fmt: skip
    return torch.stack(found)


def test_products_and_norms_are_those_of_the_gradients() -> None:
    # The second text has no token at all: its gradient is zero.
    texts, facts = made([0, 0, 2, 2, 2, 3], 0), made([0, 1, 1], 1)
    whole, queries = dense(*texts, 4), dense(*facts, 2)
    expected = torch.einsum("noi,qoi->nq", whole, queries)
    found = factor_products(texts[:2], texts[2], 4, facts[:2], facts[2], 2)
    torch.testing.assert_close(found, expected)
    assert found[1].tolist() == [0, 0]
    norms = factor_squared_norms(*texts, 4)
    torch.testing.assert_close(norms, whole.pow(2).sum((1, 2)))


def test_products_in_parts_are_those_at_once() -> None:
    texts, facts = made([0, 0, 1, 2], 2), made([0, 1, 1, 1, 2, 2], 3)
    whole = factor_products(texts[:2], texts[2], 3, facts[:2], facts[2], 3)
    before, influence._ENTRIES = influence._ENTRIES, 8
    try:
        parts = factor_products(texts[:2], texts[2], 3, facts[:2], facts[2], 3)
    finally:
        influence._ENTRIES = before
    torch.testing.assert_close(parts, whole)


def test_dda_by_hand() -> None:
    epochs = torch.tensor([[[1.0, 2.0], [0.0, 4.0]], [[3.0, 0.0], [2.0, -4.0]]])
    base = torch.tensor([[1.0, 1.0], [2.0, -2.0]])
    assert dda_scores(epochs, base, 0.5).tolist() == [[1.5, 0.5], [0.0, 1.0]]
    assert dda_scores(epochs, None, 0.5).tolist() == [[2.0, 1.0], [1.0, 0.0]]
    assert dda_scores(epochs[-1:], base, 0.5).tolist() == [[2.5, -0.5], [1.0, -3.0]]
    # By linearity the debiased influences of the epochs have the same mean.
    each = torch.stack([dda_scores(one[None], base, 0.3) for one in epochs]).mean(0)
    torch.testing.assert_close(dda_scores(epochs, base, 0.3), each)


def test_tracin_weighs_checkpoints_with_their_learning_rates() -> None:
    epochs = torch.tensor([[[1.0]], [[10.0]]])
    assert tracin_scores(epochs, torch.tensor([2.0, 0.5])).tolist() == [[7.0]]


def test_a_zero_gradient_has_the_cosine_zero() -> None:
    found = cosines(torch.tensor([[6.0], [0.0]]), torch.tensor([2.0, 0.0]), torch.tensor([3.0]))
    assert found.tolist() == [[1.0], [0.0]]


def test_a_gradient_that_is_not_finite_has_no_cosine() -> None:
    """0 would say that the text had no influence."""
    one, none = torch.tensor([1.0, torch.nan]), torch.tensor([[1.0], [torch.nan]])
    assert cosines(none, one, torch.tensor([1.0])).isnan().tolist() == [[False], [True]]
    assert cosines(none, torch.tensor([1.0, 1.0]), torch.tensor([torch.nan])).isnan().all()
