"""Runs of commit numbers, and which snapshots of a long stream are kept."""

import random
from itertools import pairwise

from lightning_edit.edits.runs import clip, kept, marks, runs_of


def test_runs_hold_what_they_were_made_of() -> None:
    draw = random.Random(0)
    for _ in range(50):
        numbers = sorted(draw.sample(range(1, 40), draw.randrange(30)))
        runs = runs_of(numbers)
        assert [n for first, last in runs for n in range(first, last + 1)] == numbers
        assert all(b[0] > a[1] + 1 for a, b in pairwise(runs))
        for last in (0, 7, 39):
            assert clip(runs, last) == runs_of(n for n in numbers if n <= last)


def test_few_snapshots_are_kept_and_one_of_every_age() -> None:
    every, places = 10, set()
    for number in range(1, 20_001):
        if number % every:
            continue
        places = kept(places | {number}, every)
        assert number in places
        assert len(places) <= 3 + (number // every).bit_length()
        for edit in range(1, number, 997):
            begin = max((place for place in places if place < edit), default=0)
            # What is read again, against what came after the edit.
            assert number - begin <= 3 * (number - edit + every)


def test_a_replay_leaves_marks_that_are_kept() -> None:
    for count in (1, 999, 1000, 1001, 123_456):
        found = marks(count, 0, 1000)
        assert found == {count - 1000 * 2**n for n in range(20) if count > 1000 * 2**n}
        assert kept(found, 1000) == found
    assert marks(5000, 4000, 1000) == marks(5000, 0, 0) == set()
