"""Columns of low-rank updates: which request each one belongs to.

A closed-form editor writes a sum over its requests, one column of the left factor and one row of
the right factor each. Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

#: Owner of a column that belongs to no request, such as that of a fact which SIR restores.
NO_REQUEST = -1

#: Prefix of the history tensors, (columns, d_out), that take the place of the left factor when a
#: request is left out of its solve; see :mod:`lightning_edit.functional.leave_one_out`.
LEFT_OUT = "left_out/"


def one_each(names: Iterable[str], requests: int, each: int = 1) -> dict[str, tuple[int, ...]]:
    """Return the columns of updates with the same number of columns for every request.

    Args:
        names: Parameter names.
        requests: Number of requests.
        each: Columns of a request, one behind the other.

    Example:
        >>> one_each(["w"], 2, each=2)
        {'w': (0, 0, 1, 1)}
    """
    owners = tuple(number for number in range(requests) for _ in range(each))
    return dict.fromkeys(names, owners)


def renumbered(
    columns: Mapping[str, Sequence[int]], numbers: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Return columns with other numbers for their requests.

    Args:
        columns: Columns by parameter name.
        numbers: The new number of each request.

    Example:
        >>> renumbered({"w": (0, 1, -1)}, [4, -1])
        {'w': (4, -1, -1)}
    """
    return {
        name: tuple(NO_REQUEST if one == NO_REQUEST else numbers[one] for one in owners)
        for name, owners in columns.items()
    }


def joined(*parts: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Concatenate the columns of updates that are added up by concatenating their factors.

    Args:
        *parts: Columns by parameter name.

    Example:
        >>> joined({"w": (0,)}, {"w": (1,), "v": (1,)})
        {'w': (0, 1), 'v': (1,)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in parts:
        for name, owners in part.items():
            found[name] = (*found.get(name, ()), *owners)
    return found


def run_lengths(owners: Sequence[int]) -> list[list[int]]:
    """Encode owners by run lengths: pairs of an owner and its number of adjacent columns.

    Args:
        owners: The request of each column.

    Example:
        >>> run_lengths((0, 1, 1, -1))
        [[0, 1], [1, 2], [-1, 1]]
    """
    return [[owner, len(list(group))] for owner, group in groupby(owners)]


def expand(runs: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Decode :func:`run_lengths`.

    Args:
        runs: Owners and the number of adjacent columns of each.

    Example:
        >>> expand([[0, 1], [1, 2]])
        (0, 1, 1)
    """
    return tuple(owner for owner, count in runs for _ in range(count))
