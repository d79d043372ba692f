"""Small tasks that have nothing to do with facts: sums, spelling, opposites, sequences, sense.

The items are written for this project. A model need not solve them: ``kept`` asks whether it says
what it said before. Nothing here imports torch.
"""

import random
from pathlib import Path

from lightning_edit.storage.jsonl import read_rows
from lightning_edit.types import Probe

ITEMS = Path(__file__).parent / "data" / "other_task.jsonl"


def other_task_probes(count: int | None = None, seed: int | str = 0) -> list[Probe]:
    """Return probes of kind ``other_task``.

    Args:
        count: How many to draw, each at most once; ``None``: all, in order.
        seed: Draws them.
    """
    rows = read_rows(ITEMS)
    probes = [Probe.of("other_task", row["prompt"], row["answers"]) for row in rows]
    if count is None or count >= len(probes):
        return probes
    return random.Random(seed).sample(probes, count)
