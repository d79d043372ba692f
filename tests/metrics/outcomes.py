"""Random outcomes of probes, and the report's numbers computed another way."""

import math
import random
import re
from collections import defaultdict

from lightning_edit.evaluation.outcomes import AnswerScore, ProbeScore, compare

KINDS = {
    "rewrite": ("reliability", "target"),
    "rephrase": ("generalization", "target"),
    "neighborhood": ("locality", "unchanged"),
    "other_task": ("locality", "unchanged"),
    "one_hop": ("portability", "answer"),
    "known_fact": ("known", "answer"),
}


def random_outcomes(seed: int, requests: int) -> list[ProbeScore]:
    """Make outcomes of requests with different numbers of probes of different kinds."""
    draw = random.Random(seed)
    return [
        _outcome(draw, f"{seed}-{number}", kind, probe)
        for number in range(requests)
        for kind in KINDS
        for probe in range(draw.choice([0, 1, 1, 3]) if kind != "rewrite" else 1)
    ]


def _outcome(draw: random.Random, edit_id: str, kind: str, probe: int) -> ProbeScore:
    def answer(text: str) -> AnswerScore:
        size = draw.randint(1, 3)
        return AnswerScore(
            text,
            tuple(range(size)),
            tuple(token if draw.random() < 0.7 else 99 for token in range(size)),
            tuple(draw.uniform(0, 4) for _ in range(size)),
        )

    values = {
        "edit_id": edit_id,
        "kind": kind,
        "prompt": f"{kind} {probe}",
        "answers": ("Rome", "Roma"),
        "expect": KINDS[kind][1],
    }
    first = (answer("Rome"), answer("Roma"))
    choices = tuple(token if draw.random() < 0.8 else 98 for token in first[0].argmax_ids)
    changed = AnswerScore("Rome", first[0].target_ids, choices, first[0].nlls)
    contrast = answer("Lyon") if kind != "one_hop" and draw.random() < 0.8 else None
    texts = ["Rome", "Roma. Old", "Roma, old", "It is Rome", "Lyon", None]
    before = ProbeScore(**values, forced=first, generated=draw.choice(texts))
    after = ProbeScore(
        **values,
        forced=(changed, answer("Roma")),
        contrast=contrast,
        generated=draw.choice(texts),
    )
    return compare(after, before)


def reference(outcomes: list[ProbeScore]) -> dict[str, float]:
    """Compute every number of the report from rows, without the library's own formulas."""
    groups: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    probes: dict[str, int] = defaultdict(int)
    ids: dict[str, set[str]] = defaultdict(set)
    for row in (outcome.to_row() for outcome in outcomes):
        for measure, value in _measures(row).items():
            groups[row["edit_id"]][row["kind"]][measure].append(value)
        for name in _names(row["kind"]):
            probes[name] += 1
            ids[name].add(row["edit_id"])
    collected: dict[str, list[float]] = defaultdict(list)
    for kinds in groups.values():
        aspects: dict[str, list[float]] = defaultdict(list)
        for kind, measures in kinds.items():
            for measure, values in measures.items():
                value = sum(values) / len(values)
                aspects[f"{_names(kind)[0]}/{measure}"].append(value)
                for name in _names(kind)[1:]:
                    collected[f"{name}/{measure}"].append(value)
        for name, values in aspects.items():
            collected[name].append(sum(values) / len(values))
    result = {name: sum(values) / len(values) for name, values in collected.items()}
    return (
        result
        | _counterfact(result)
        | {f"{name}/probes": count for name, count in probes.items()}
        | {f"{name}/n": len(found) for name, found in ids.items()}
        | {
            f"{name}/n": len(values)
            for name, values in collected.items()
            if len(values) < len(ids[name.partition("/")[0]])
        }
    )


def _counterfact(result: dict[str, float]) -> dict[str, float]:
    aspects = {"E": "reliability", "P": "generalization", "N": "locality.neighborhood"}
    named = {}
    for letter, aspect in aspects.items():
        if f"{aspect}/margin@tf" in result:
            named[f"counterfact/{letter}S@tf"] = result[f"{aspect}/margin_sign@tf"]
            named[f"counterfact/{letter}M@tf"] = result[f"{aspect}/margin@tf"]
    shares = [named.get(f"counterfact/{letter}S@tf") for letter in aspects]
    if None not in shares:
        named["counterfact/S@tf"] = (
            3 / (1 / shares[0] + 1 / shares[1] + 1 / shares[2]) if all(shares) else 0.0
        )
    return named


def _names(kind: str) -> list[str]:
    aspect = KINDS[kind][0]
    return [aspect, f"{aspect}.{kind}"] if aspect in ("locality", "portability") else [aspect]


def _measures(row: dict) -> dict[str, float]:
    shares = [
        sum(a == b for a, b in zip(one["argmax_ids"], one["target_ids"], strict=True))
        / len(one["target_ids"])
        for one in row["forced"]
    ]
    nll = sum(row["forced"][0]["nlls"]) / len(row["forced"][0]["nlls"])
    values = {"token_acc@tf": max(shares), "em@tf": float(max(shares) == 1), "nll@tf": nll}
    if row["contrast"]:
        other = sum(row["contrast"]["nlls"]) / len(row["contrast"]["nlls"])
        values["margin@tf"] = math.exp(-nll) - math.exp(-other)
        values["margin_sign@tf"] = float(nll < other)
    if row["generated"] is not None:
        values["em@gen"] = float(row["generated"].split(".")[0] in ("Rome", "Roma"))
        values["answer@gen"] = float(
            any(re.match(rf"{re.escape(one)}\b", row["generated"]) for one in row["answers"])
        )
        values["contains@gen"] = float(
            any(re.search(rf"\b{re.escape(one)}\b", row["generated"]) for one in row["answers"])
        )
    if row["expect"] == "unchanged":
        pre = row["pristine"]
        a, b = row["forced"][0]["argmax_ids"], pre["forced"][0]["argmax_ids"]
        values["kept@tf"] = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
        if None not in (row["generated"], pre["generated"]):
            values["kept@gen"] = _same(row["generated"], pre["generated"], row["answers"])
    return values


def _same(text: str, other: str, answers: list[str]) -> float:
    def where(pattern: str, one: str) -> set[str]:
        return {answer for answer in answers if re.search(pattern % re.escape(answer), one)}

    starts = [where(r"^%s\b", one) for one in (text, other)]
    if not any(starts):
        return float(text[:4] == other[:4])
    contains = [where(r"\b%s\b", one) for one in (text, other)]
    return float(bool(starts[0] & contains[1] or starts[1] & contains[0]))
