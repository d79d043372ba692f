"""Padding of token ids to one tensor, and the positions that predict answers.

Axis names: ``n`` -- rows; ``t`` -- token positions; ``p`` -- predicted tokens of all rows.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def pad(
    rows: Sequence[Sequence[int]], left: bool = False
) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
    """Pad rows of token ids to one tensor, with an attention mask.

    Args:
        rows: Token ids.
        left: Whether to pad on the left, as generation needs it.

    Returns:
        Ids and attention mask. The padding id is masked, so any id will do.
    """
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        columns = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, columns] = torch.tensor(row)
        mask[number, columns] = 1
    return ids, mask


def prediction_places(
    firsts: Sequence[int], lengths: Sequence[int]
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Return the positions that predict answer tokens: one position *before* each of them.

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
