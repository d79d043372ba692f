"""Random facts around edits, and the numbers of ripple effects computed another way."""

import random
from collections import defaultdict

from lightning_edit.evaluation.neighbourhoods import SETS, FactOutcome, NeighbourFact, Ripple


def random_ripples(draw: random.Random, edits: int = 7) -> list[list[Ripple]]:
    """Make facts around edits; some edits lack a set, and some changes lie beyond all bins."""
    return [
        [
            Ripple(
                f"edit {edit}",
                NeighbourFact(
                    number,
                    draw.choice([None, *range(1, 11)]),
                    draw.choice([-1.0, 1.0, draw.uniform(-1, 1)]),
                    draw.choice(SETS[: draw.choice([3, 4])]),
                ),
                FactOutcome(draw.uniform(0, 3), draw.choice([1, 1, 2, 9])),
                FactOutcome(draw.choice([draw.uniform(0, 6), 1000.0]), draw.choice([1, 2, 30])),
            )
            for number in range(draw.randint(1, 12))
        ]
        for edit in range(edits)
    ]


def reference(edits: list[list[Ripple]]) -> dict[str, float]:
    """Compute every number from the rows of a report."""
    groups: dict[str, list[Ripple]] = defaultdict(list)
    gie = []
    for around in edits:
        by_set: dict[str, list[float]] = defaultdict(list)
        for ripple in around:
            distance, similarity = ripple.place.distance, ripple.place.similarity
            step = "none" if distance is None else f"{distance}" if distance <= 6 else "7_up"
            low = max(n for n in range(-10, 10, 2) if n / 10 <= similarity + 1e-12)
            groups[f"ripple.{ripple.place.set}"].append(ripple)
            groups[f"ripple.distance_{step}"].append(ripple)
            groups[f"ripple.similarity_{low / 10:.1f}"].append(ripple)
            by_set[ripple.place.set].append(ripple.after.nll - ripple.before.nll)
        if by_set["near"] and by_set["random"]:
            near, others = by_set["near"], by_set["random"]
            gie.append(sum(near) / len(near) - sum(others) / len(others))
    result = {"ripple/gie@tf": sum(gie) / len(gie)} if gie else {}
    for group, listed in groups.items():
        changes = [ripple.after.nll - ripple.before.nll for ripple in listed]
        values = {
            "change": sum(changes),
            "beyond": sum(change > 0.6931471805599453 for change in changes),
            "rank_change": sum(ripple.after.rank - ripple.before.rank for ripple in listed),
            "em_before": sum(ripple.before.rank == 1 for ripple in listed),
            "em": sum(ripple.after.rank == 1 for ripple in listed),
        }
        result |= {f"{group}/{name}@tf": total / len(listed) for name, total in values.items()}
        result[f"{group}/facts"] = len(listed)
        if group.split(".")[1] in SETS:
            needed = -(-95 * len(changes) // 100)
            result[f"{group}/p95@tf"] = sorted(changes)[needed - 1]
    return result
