"""Batching of token rows by length."""


def length_sorted(lengths: list[int], budget: int) -> list[list[int]]:
    """Batch row numbers by length, so that rows of a batch need little padding.

    Args:
        lengths: Tokens of each row.
        budget: Rows per batch.

    Returns:
        Row numbers per batch, longest rows first so that a batch too large for memory fails at
        once.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + budget] for start in range(0, len(order), budget)]
