"""A row with a mask attends as a row in groups does; which one is used follows from its keys."""

import pytest
import torch

from lightning_edit.inference.packed.layout import KVPool, Packing, RowLayout, lay_out
from lightning_edit.inference.packed.masked import MOST_KEYS, MaskedRow
from tests.inference.packed.test_attention import some

#: Tokens in the row of each text, and which tokens of the pool come before; the last two share.
LENGTHS, EARLIER = [3, 1, 4, 2], [(0, 1), (), (5, 6, 7), (5, 6)]


def laid_out(kind: str, key_heads: int) -> RowLayout:
    pool = KVPool({1: (some(key_heads, 9, 1), some(key_heads, 9, 2))}, 9)
    lengths = torch.tensor(LENGTHS)
    if kind == "groups":
        return Packing.of(lengths, EARLIER, pool, torch.float64)
    return MaskedRow.of(lengths, EARLIER, pool.blocks, torch.float64)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("rows", [None, [2, 0], [3, 3, 1]], ids=["all", "some", "repeated"])
def test_a_mask_and_groups_attend_alike(key_heads: int, rows: list[int] | None) -> None:
    found = []
    for kind in ("groups", "mask"):
        layout = laid_out(kind, key_heads)
        lengths = torch.tensor(LENGTHS)
        if rows is not None:
            lengths, layout = lengths[rows], layout.select(torch.tensor(rows))
        # The text with n tokens gets the same ones in whatever order a layout puts the texts.
        tokens = layout.tokens(lengths.cumsum(0) - lengths)
        given = [
            some(heads, int(lengths.sum()), seed).requires_grad_()
            for seed, heads in enumerate((4, key_heads, key_heads))
        ]
        row = [one[None, :, tokens] for one in given]
        output = layout.attend(1, *row, 0.3)
        up = some(4, int(lengths.sum()), 9).transpose(0, 1)[None, tokens]
        back = torch.argsort(tokens)
        found.append([output[0, back], *torch.autograd.grad(output, given, up)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_earlier_tokens_are_there_once_and_only_if_a_text_has_them() -> None:
    layout = laid_out("mask", 4)
    assert isinstance(layout, MaskedRow)
    assert layout.past[1][0].shape[1] == len({0, 1, 5, 6, 7})
    few = layout.select(torch.tensor([3]))
    assert isinstance(few, MaskedRow)
    assert few.past[1][0].shape[1] == 2
    assert (layout.reach, few.reach) == (7, 4)
    assert not layout.drop_blocks_below(2).past


def test_the_number_of_keys_alone_decides() -> None:
    pool = KVPool({0: (some(1, 40, 1), some(1, 40, 2))}, 40)

    def kind(texts: int) -> type:
        lengths = torch.full((texts,), 2)
        return type(lay_out(lengths, [range(40)] * texts, pool, torch.float64))

    most = (MOST_KEYS - 40) // 2
    assert (kind(most), kind(most + 1)) == (MaskedRow, Packing)
