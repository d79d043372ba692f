"""Locality probes from unrelated tasks: sums, spelling, opposites, sequences, common sense.

The items are written for this project. A model need not solve them: ``kept`` compares its answer
with the pristine model's. Nothing here imports torch.
"""

import random
from pathlib import Path

from lightning_edit.storage.jsonl import read_rows
from lightning_edit.types import Probe

ITEMS = Path(__file__).parent / "data" / "other_task.jsonl"


def other_task_probes(count: int | None = None, seed: int | str = 0) -> list[Probe]:
    """Sample probes of kind ``other_task``.

    Args:
        count: Number of probes, drawn without replacement; ``None``: all, in order.
        seed: Seed of the sample.
    """
    rows = read_rows(ITEMS)
    probes = [Probe.of("other_task", row["prompt"], row["answers"]) for row in rows]
    if count is None or count >= len(probes):
        return probes
    return random.Random(seed).sample(probes, count)
