"""Attention over texts in one row is attention over each text."""

import pytest
import torch

from lightning_edit.inference.packed.attention import attend
from lightning_edit.inference.packed.layout import KVPool, Packing

WIDTH = 8
#: Tokens before, and tokens in the row, of each text; the second kind needs padding.
EVEN, UNEVEN = [(3, 2), (0, 2), (5, 4)], [(3, 1), (0, 2), (5, 3), (2, 4), (1, 5), (4, 6)]


def some(heads: int, tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(heads, tokens, WIDTH, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["own-keys", "shared-keys"])
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN, [(0, 3), (0, 2)]], ids=["even", "uneven", "bare"])
@pytest.mark.parametrize("padding", [0, 200], ids=["groups", "one-group"])
def test_equals_attention_to_each_text(
    sizes: list[tuple[int, int]],
    heads: tuple[int, int],
    scaling: float | None,
    padding: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightning_edit.inference.packed.layout._CHEAP_PADDING", padding)
    before, lengths = (list(column) for column in zip(*sizes, strict=True))
    starts = [sum(before[:number]) for number in range(len(sizes))]
    pool = KVPool(
        {0: (some(heads[1], sum(before), 1), some(heads[1], sum(before), 2))}, sum(before)
    )
    earlier = [range(start, start + size) for start, size in zip(starts, before, strict=True)]
    packing = Packing.of(torch.tensor(lengths), earlier, pool, torch.float64)
    row = [
        some(count, sum(lengths), 3)[None].requires_grad_() for count in (heads[0], *2 * heads[1:])
    ]
    found = attend(packing.groups, 0, *row, scaling)
    up = some(heads[0], sum(lengths), 4).transpose(0, 1)[None]
    gradients = torch.autograd.grad(found, row, up)
    for number, (start, size) in enumerate(zip(packing.starts.tolist(), lengths, strict=True)):
        old = list(earlier[number])
        query, key, value = (one[:, :, start : start + size] for one in row)
        keys, values = (
            torch.cat([kept[None, :, old], new], dim=2)
            for kept, new in zip(pool.blocks[0], (key, value), strict=True)
        )
        mask = torch.ones(size, size + len(old)).tril(len(old)).bool()
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, mask, scale=scaling, enable_gqa=True
        ).transpose(1, 2)
        own = slice(start, start + size)
        torch.testing.assert_close(found[:, own], wanted)
        plain = torch.autograd.grad(wanted, row, up[:, own])
        for one, other in zip(gradients, plain, strict=True):
            torch.testing.assert_close(one[:, :, own], other[:, :, own])


def test_padding_that_costs_more_than_a_group_is_avoided() -> None:
    lengths = torch.tensor([2, 7] * 60)
    packing = Packing.of(lengths, [()] * 120, KVPool({}, 0), torch.float32)
    assert [group.numbers.tolist() for group in packing.groups] == [
        list(range(0, 120, 2)),
        list(range(1, 120, 2)),
    ]
    assert all(group.same_length for group in packing.groups)


def test_a_few_texts_share_one_group() -> None:
    packing = Packing.of(torch.tensor([2, 7, 2, 7]), [()] * 4, KVPool({}, 0), torch.float32)
    (group,) = packing.groups
    assert group.size == 18
    assert not group.same_length


def test_many_lengths_share_few_groups_with_little_padding() -> None:
    lengths = torch.tensor([1, 2, 30, 31, 60, 90, 120]).repeat_interleave(20)
    packing = Packing.of(lengths, [()] * 140, KVPool({}, 0), torch.float32)
    padding = sum(len(group.slots) - group.size for group in packing.groups)
    assert (len(packing.groups), padding) == (4, 20 * (1 + 1 + 30))


def test_a_gradient_after_another_pass_is_refused() -> None:
    pool = KVPool({0: (some(2, 3, 1), some(2, 3, 2))}, 3)
    packing = Packing.of(torch.tensor([2]), [range(3)], pool, torch.float64)
    row = [some(2, 2, 3)[None].requires_grad_() for _ in range(3)]
    first = attend(packing.groups, 0, *row, None)
    attend(packing.groups, 0, *row, None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.sum().backward()
