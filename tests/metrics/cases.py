"""Every metric with items and a reference that shares nothing with the library."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from lightning_edit.metrics import (
    AspectScores,
    CriterionScores,
    EditCost,
    HiddenDistance,
    Leak,
    NgramEntropy,
    Overfitting,
    Perplexity,
    Retention,
    RippleScores,
    RuntimeCost,
    Trend,
    WeightGrowth,
)
from tests.metrics import grouped, ripples
from tests.metrics.outcomes import random_outcomes, reference
from tests.metrics.tester import Case

TEXTS = 11


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------- aspects


def _requests(draw: random.Random) -> list[Any]:
    by_request = defaultdict(list)
    for outcome in random_outcomes(draw.randrange(1000), 9):
        by_request[outcome.edit_id].append(outcome)
    return list(by_request.values())


def _flat(items: Sequence[Sequence[Any]]) -> list[Any]:
    return [one for item in items for one in item]


# ----------------------------------------------------------------------------------- collapse


def _texts(draw: random.Random) -> list[Any]:
    """Texts of 1 to 9 tokens; one of them is broken beyond every bound."""
    items = [
        (number, [draw.uniform(0, 9) for _ in range(draw.randint(1, 9))]) for number in range(TEXTS)
    ]
    items[draw.randrange(TEXTS)][1][:] = [1000.0, 1000.0]
    return items


def _give_texts(metric: Perplexity, items: Sequence[Any]) -> None:
    metric.update(
        torch.tensor([number for number, _ in items], dtype=torch.long),
        torch.tensor([sum(nlls) for _, nlls in items], dtype=torch.float64),
        torch.tensor([len(nlls) for _, nlls in items], dtype=torch.long),
    )


def _perplexity(items: Sequence[Any]) -> dict[str, float]:
    each = sorted(math.exp(min(mean(nlls), 80)) for _, nlls in items)
    middle = len(each) // 2
    median = each[middle] if len(each) % 2 else (each[middle - 1] + each[middle]) / 2
    tokens = [nll for _, nlls in items for nll in nlls]
    return {
        "perplexity": math.exp(min(mean(tokens), 80)),
        "perplexity_median": median,
        "perplexity_clipped": mean([min(value, 1000) for value in each]),
        "perplexity_mean": mean(each),
    }


def _stories(draw: random.Random) -> list[str]:
    alphabet = ["the", "river", "lies", "in", "Lyon", ".", "and", ","]
    texts = [" ".join(draw.choices(alphabet, k=draw.randint(0, 30))) for _ in range(8)]
    return [*texts, "", "the the the the the"]


def _entropy(items: Sequence[str]) -> dict[str, float]:
    def bits(words: list[str], n: int) -> float:
        grams = Counter(zip(*(words[start:] for start in range(n)), strict=False))
        shares = [count / sum(grams.values()) for count in grams.values()]
        return sum(share * math.log2(1 / share) for share in shares)

    per_text = []
    for text in items:
        words = text.split()
        per_text.append((bits(words, 2) * 2 / 3 + bits(words, 3) * 4 / 3) / 2)
    return {"ngram_entropy": mean(per_text)}


# -------------------------------------------------------------------------------------- drift


def _answers(draw: random.Random) -> list[Any]:
    """(age, right after its edit, right now): older ones are forgotten more often."""
    items = []
    for _ in range(60):
        age = draw.choice([0, 1, 3, 4, 9, 30, 40, 70, 130])
        once = float(draw.random() < 0.8)
        items.append((age, once, float(draw.random() > age / 80)))
    return [*items, (130, 1.0, 0.0), (150, 1.0, 0.0)]


def _give_answers(metric: Retention, items: Sequence[Any]) -> None:
    metric.update(
        torch.tensor([age for age, _, _ in items], dtype=torch.long),
        torch.tensor([once for _, once, _ in items], dtype=torch.float32),
        torch.tensor([now for _, _, now in items], dtype=torch.float32),
    )


def _retention(items: Sequence[Any]) -> dict[str, float]:
    bounds = [1, 2, 5, 10, 20, 50, 100, 200]
    curve = []
    for low, high in pairwise(bounds):
        inside = [(age, now) for age, once, now in items if low <= age < high and once]
        if inside:
            curve.append((mean([age for age, _ in inside]), mean([now for _, now in inside])))
    old = [now for age, once, now in items if age > 0 and once]
    x0, y0 = 0.0, 1.0
    life = None
    for x1, y1 in curve:
        if y1 <= 0.5:
            life = x0 + (y0 - 0.5) * (x1 - x0) / (y0 - y1)
            break
        x0, y0 = x1, y1
    assert life is not None
    return {"retention": mean(old), "half_life": life}


def _states(draw: random.Random) -> list[Any]:
    return [
        ([draw.gauss(0, 1) for _ in range(5)], [draw.gauss(0, 1) for _ in range(5)])
        for _ in range(7)
    ]


def _give_states(metric: HiddenDistance, items: Sequence[Any]) -> None:
    now = torch.tensor([now for now, _ in items], dtype=torch.float64).reshape(-1, 5)
    before = torch.tensor([before for _, before in items], dtype=torch.float64).reshape(-1, 5)
    metric.update(now, before)


def _norm(vector: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def _distance(items: Sequence[Any]) -> dict[str, float]:
    cosines, distances = [], []
    for now, before in items:
        inner = sum(a * b for a, b in zip(now, before, strict=True))
        cosines.append(1 - inner / _norm(now) / _norm(before))
        change = [a - b for a, b in zip(now, before, strict=True)]
        distances.append(_norm(change) / _norm(before))
    return {"hidden_cosine": mean(cosines), "hidden_l2": mean(distances)}


def _weights(draw: random.Random) -> list[Any]:
    """(now, before, whether the old weight is kept)."""
    return [
        ([draw.gauss(0, 2) for _ in range(9)], [draw.gauss(0, 1) for _ in range(9)], number != 2)
        for number in range(5)
    ]


def _give_weights(metric: WeightGrowth, items: Sequence[Any]) -> None:
    if not items:
        metric.update(0.0, 0.0, 0.0, 0.0)
    for now, before, kept in items:
        moved = sum((a - b) ** 2 for a, b in zip(now, before, strict=True)) if kept else None
        metric.update(
            math.fsum(map(abs, now)),
            math.fsum(a * a for a in now),
            math.fsum(map(abs, before)),
            math.fsum(a * a for a in before),
            moved,
        )


def _growth(items: Sequence[Any]) -> dict[str, float]:
    now = [value for weight, _, _ in items for value in weight]
    before = [value for _, weight, _ in items for value in weight]
    pairs = [zip(w, w0, strict=True) for w, w0, kept in items if kept]
    change = [a - b for pair in pairs for a, b in pair]
    base = [value for _, weight, kept in items if kept for value in weight]
    return {
        "l1_growth": sum(map(abs, now)) / sum(map(abs, before)),
        "l2_growth": _norm(now) / _norm(before),
        "update_norm": _norm(change) / _norm(base),
    }


def _points(draw: random.Random) -> list[Any]:
    return [(edits, draw.gauss(edits / 10, 1)) for edits in (0, 1, 10, 30, 100)]


def _give_points(metric: Trend, items: Sequence[Any]) -> None:
    if not items:
        metric.update_sums([0.0] * 5)
    for edits, value in items:
        metric.update(edits, value)


def _trend(items: Sequence[Any]) -> dict[str, float]:
    middle = mean([x for x, _ in items])
    up = sum((x - middle) * y for x, y in items)
    return {"per_100_edits": 100 * up / sum((x - middle) ** 2 for x, _ in items)}


# --------------------------------------------------------------------------------- overfitting


def _leaks(draw: random.Random) -> list[Any]:
    """One item a request, with different numbers of questions in each group."""

    def maybe(value: Any) -> Any:
        return value if draw.random() < 0.7 else None

    return [
        [
            Leak(
                f"e{number}",
                group,
                maybe(draw.random()),
                maybe(draw.random()),
                maybe(draw.random()),
                maybe(draw.random() < 0.5),
                maybe(draw.random() < 0.5),
            )
            for group in ("subject_specificity", "subject_only", "multi_hop")
            for _ in range(draw.choice([0, 1, 3]))
        ]
        for number in range(8)
    ]


def _overfitting(items: Sequence[Any]) -> dict[str, float]:
    collected: dict[str, list[float]] = defaultdict(list)
    for request in items:
        own: dict[str, list[float]] = defaultdict(list)
        for q in request:
            for name, value in (
                ("dp@tf", q.target),
                ("cap@tf", q.right),
                ("oap@tf", q.old),
                ("leak@tf", q.forced),
                ("leak@gen", q.generated),
            ):
                if value is not None:
                    own[f"{q.group}/{name}"].append(float(value))
            if None not in (q.right, q.target):
                own[f"{q.group}/eos@tf"].append(float(q.right > q.target))
                if q.old is not None:
                    own[f"{q.group}/ams@tf"].append(float(q.right > q.old or q.target > q.old))
        for name, listed in own.items():
            collected[name].append(mean(listed))
    return {name: mean(listed) for name, listed in collected.items()}


# ---------------------------------------------------------------------------------- efficiency


def _commits(draw: random.Random) -> list[Any]:
    return [
        {
            "edits": draw.randint(0, 3),
            "seconds": {"search": draw.random(), "solve": draw.random(), "evaluate": draw.random()},
            "delta_bytes": draw.randrange(1000),
            "parameters": draw.randrange(1000),
            "rank": draw.randrange(9),
            "peak_bytes": draw.randrange(10**9),
        }
        for _ in range(6)
    ]


def _give_commits(metric: EditCost, items: Sequence[Any]) -> None:
    for item in items or [{"edits": 0, "seconds": {}}]:
        metric.update(**item)


def _cost(items: Sequence[Any]) -> dict[str, float]:
    edits = sum(item["edits"] for item in items)
    total = {name: sum(i["seconds"][name] for i in items) for name in items[0]["seconds"]}
    return {
        **{f"{name}_seconds": seconds / edits for name, seconds in total.items()},
        "seconds": (total["search"] + total["solve"]) / edits,
        "delta_bytes": sum(item["delta_bytes"] for item in items) / edits,
        "parameters": max(item["parameters"] for item in items),
        "rank": max(item["rank"] for item in items),
        "peak_bytes": max(item["peak_bytes"] for item in items),
    }


def _queries(draw: random.Random) -> list[Any]:
    return [
        {
            "edits": draw.randint(1, 3),
            "state_bytes": draw.randrange(1000),
            "text_bytes": draw.randrange(1000),
            "queries": draw.randint(1, 4),
            "seconds": draw.random(),
            "unedited_seconds": 0.1 + draw.random(),
            "added_tokens": draw.choice([None, draw.randrange(90)]),
        }
        for _ in range(6)
    ]


def _give_queries(metric: RuntimeCost, items: Sequence[Any]) -> None:
    for item in items or [{}]:
        metric.update(**item)


def _runtime_cost(items: Sequence[Any]) -> dict[str, float]:
    def total(name: str) -> float:
        return sum(item[name] for item in items)

    told = [item for item in items if item["added_tokens"] is not None]
    said = {}
    if told:
        added = sum(item["added_tokens"] for item in told)
        said["added_tokens"] = added / sum(item["queries"] for item in told)
    return said | {
        "state_bytes": total("state_bytes") / total("edits"),
        "text_bytes": total("text_bytes") / total("edits"),
        "seconds_per_query": total("seconds") / total("queries"),
        "seconds_per_query_unedited": total("unedited_seconds") / total("queries"),
        "query_slowdown": total("seconds") / total("unedited_seconds"),
    }


CASES: dict[str, Case] = {
    "AspectScores": Case(
        AspectScores,
        _requests,
        lambda metric, items: metric.update(_flat(items)),
        lambda items: reference(_flat(items)),
    ),
    "CriterionScores": Case(
        CriterionScores,
        lambda draw: [grouped.random_case(draw, f"case {number}") for number in range(9)],
        lambda metric, items: metric.update(_flat(items)),
        grouped.reference,
    ),
    "RippleScores": Case(
        RippleScores,
        ripples.random_ripples,
        lambda metric, items: metric.update(_flat(items)),
        ripples.reference,
    ),
    "Perplexity": Case(lambda: Perplexity(TEXTS), _texts, _give_texts, _perplexity),
    "NgramEntropy": Case(
        NgramEntropy, _stories, lambda metric, items: metric.update(items), _entropy
    ),
    "Retention": Case(Retention, _answers, _give_answers, _retention),
    "HiddenDistance": Case(HiddenDistance, _states, _give_states, _distance),
    "WeightGrowth": Case(WeightGrowth, _weights, _give_weights, _growth),
    "Trend": Case(Trend, _points, _give_points, _trend),
    "Overfitting": Case(
        Overfitting, _leaks, lambda metric, items: metric.update(_flat(items)), _overfitting
    ),
    "EditCost": Case(EditCost, _commits, _give_commits, _cost),
    "RuntimeCost": Case(RuntimeCost, _queries, _give_queries, _runtime_cost),
}
