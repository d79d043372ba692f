"""Random outcomes of tests of several questions, and their scores computed another way."""

import random
from collections import defaultdict

from lightning_edit.evaluation.outcomes import AnswerScore, ProbeScore, compare
from lightning_edit.types import Group


def outcome(
    case: str, kind: str, right: bool, before: bool, group: Group | None = None, edit: str = ""
) -> ProbeScore:
    """Make an outcome that is right or wrong, in both modes, now and on the pristine model."""

    def score(good: bool) -> ProbeScore:
        answer = AnswerScore("Rome", (1,), (1 if good else 2,), (0.5,))
        return ProbeScore(
            edit or f"{case}-1", kind, f"{kind} {group}", ("Rome",), "answer", (answer,),
            generated="Rome" if good else "Lyon", case=case, group=group,
        )  # fmt: skip

    return compare(score(right), score(before))


def random_case(draw: random.Random, name: str) -> list[ProbeScore]:
    scores = [outcome(name, "rewrite", draw.random() < 0.7, False)]
    for number in range(3):
        right = draw.random() < 0.6
        scores.append(outcome(name, "premise", right, draw.random() < 0.6, Group(f"p{number}")))
    for number in range(draw.randint(1, 5)):
        criterion = draw.choice(["compositionality_i", "forgetfulness"])
        kind = "one_hop" if criterion == "compositionality_i" else "forgetfulness"
        needs = tuple(draw.sample(["p0", "p1", "p2"], draw.randint(0, 2)))
        test = Group(f"t{number}", criterion, draw.choice(["any", "all"]), needs)
        scores += [
            outcome(name, kind, draw.random() < 0.5, draw.random() < 0.5, test)
            for _ in range(draw.randint(1, 3))
        ]
    return scores


def reference(cases: list[list[ProbeScore]]) -> dict[str, float]:
    """Compute every number from rows, as loops over tests."""
    collected: dict[str, list[float]] = defaultdict(list)
    tests: dict[str, int] = defaultdict(int)
    for case in cases:
        rows = [score.to_row() for score in case]
        by_value: dict[str, list[bool]] = defaultdict(list)
        for mode in ("tf", "gen"):
            took = all(_right(row, mode) for row in rows if row["kind"] == "rewrite")
            names = {r["group"]["name"] for r in rows if r["kind"] not in ("rewrite", "premise")}
            for name in names:
                questions = [r for r in rows if r.get("group", {}).get("name") == name]
                test = questions[0]["group"]
                right = [_right(row, mode) for row in questions]
                passed = any(right) if test["rule"] == "any" else all(right)
                known = all(
                    _right(row["pristine"], mode)
                    for row in rows
                    if row["kind"] == "premise" and row["group"]["name"] in test["premises"]
                )
                aspect = "locality" if test["criterion"] == "forgetfulness" else "portability"
                group = f"{aspect}.{test['criterion']}"
                tests[f"{group}/tests"] += mode == "tf"
                by_value[f"{group}/passed@{mode}"].append(passed)
                by_value[f"{group}/known@{mode}"].append(known)
                if known:
                    by_value[f"{group}/passed_known@{mode}"].append(passed)
                if known and took:
                    by_value[f"{group}/passed_edited@{mode}"].append(passed)
        for name, values in by_value.items():
            collected[name].append(sum(values) / len(values))
    return {name: sum(values) / len(values) for name, values in collected.items()} | tests


def _right(row: dict, mode: str) -> bool:
    if mode == "gen":
        return row["generated"] == "Rome"
    return row["forced"][0]["argmax_ids"] == [1]
