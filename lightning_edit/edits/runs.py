"""Numbers of commits as runs without a gap, and which snapshots of a long stream are kept."""

from collections.abc import Collection, Iterable

#: First and last number of each run, in order.
Runs = tuple[tuple[int, int], ...]


def runs_of(numbers: Iterable[int]) -> Runs:
    """Return rising numbers as runs.

    Args:
        numbers: Numbers of commits, in order.

    Example:
        >>> runs_of([1, 2, 3, 5, 6])
        ((1, 3), (5, 6))
    """
    runs: list[tuple[int, int]] = []
    first = last = None
    for number in numbers:
        if first is not None and last is not None and number != last + 1:
            runs.append((first, last))
            first = None
        first, last = number if first is None else first, number
    if first is not None and last is not None:
        runs.append((first, last))
    return tuple(runs)


def clip(runs: Runs, last: int) -> Runs:
    """Return the runs up to a number.

    Args:
        runs: Runs in order.
        last: The highest number that stays.

    Example:
        >>> clip(((1, 3), (5, 8)), 6)
        ((1, 3), (5, 6))
    """
    return tuple((begin, min(end, last)) for begin, end in runs if begin <= last)


def kept(places: Collection[int], every: int) -> set[int]:
    """Return which snapshots stay: the newest, and one of every age from 2ⁿ to 2ⁿ⁺¹ intervals.

    Of an age the oldest stays, so that one is there when the next age has moved on. A replay that
    begins before a commit then reads at most about three times as many deltas as came after it.

    Args:
        places: Numbers of the last commits of the snapshots.
        every: Commits between two snapshots.
    """
    if not places:
        return set()
    newest = max(places)
    oldest: dict[int, int] = {}
    for place in sorted(places):
        age = max(1, (newest - place) // every)
        oldest.setdefault(age.bit_length(), place)
    return {*oldest.values(), newest}


def marks(count: int, begun: int, every: int) -> set[int]:
    """Return after how many commits of a replay snapshots are written: 1, 2, 4 … intervals ago.

    Args:
        count: Commits of the whole list.
        begun: Commits at which the replay begins.
        every: Commits between two snapshots.

    Example:
        >>> sorted(marks(1050, 300, 100))
        [650, 850, 950]
    """
    found, age = set(), every
    while every and count - age > begun:
        found.add(count - age)
        age *= 2
    return found
