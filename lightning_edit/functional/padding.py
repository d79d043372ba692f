"""Rows of token ids into one tensor, and where their answers are predicted.

Axis names: ``n`` -- rows; ``t`` -- token positions; ``p`` -- predicted tokens of all rows.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def pad(
    rows: Sequence[Sequence[int]], left: bool = False
) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
    """Make one tensor of rows of different lengths.

    Args:
        rows: Token ids.
        left: Whether to pad before a row, as generation needs it.

    Returns:
        Ids and attention mask. The padding's id is masked, so any will do.
    """
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return ids, mask


def prediction_places(
    firsts: Sequence[int], lengths: Sequence[int]
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Return where a decoder predicts answer tokens: one place *before* each of them.

    Args:
        firsts: Position of the first answer token in each right-padded row.
        lengths: Answer tokens of each row.

    Returns:
        Row numbers and positions, row by row.
    """
    rows = [row for row, length in enumerate(lengths) for _ in range(length)]
    positions = [
        first - 1 + offset
        for first, length in zip(firsts, lengths, strict=True)
        for offset in range(length)
    ]
    return torch.tensor(rows), torch.tensor(positions)
