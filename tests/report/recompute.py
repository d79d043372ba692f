"""Recompute a run's scores from ``cases.jsonl`` alone, without any code of the library.

Run:  python tests/report/recompute.py RUN…
"""

import json
import math
import re
import sys
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

CAP, MOST = 1000.0, 999.0
ASPECTS = {"reliability", "generalization", "locality", "portability", "known"}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _words(text: str) -> list[str]:
    """Words of texts of letters and whole numbers; a sign that a hyphen follows is ``-``."""
    text = re.sub(r"(?<=\w)[-‐‑–](?=\w)", " - ", unicodedata.normalize("NFKC", text).casefold())
    text = re.sub(r"(?<=\w)\.(?=\w)|['’‘`]", "", text)
    kinds = [(letter, unicodedata.category(letter)) for letter in text]
    text = "".join(letter if letter == "-" or kind[0] != "P" else " " for letter, kind in kinds)
    words = [word for word in text.split() if word != "the"]
    while len(words) > 1 and words[0] in ("a", "an"):
        words = words[1:]
    return words or text.split()


def _plain(text: str) -> list[str]:
    return [word for word in _words(text) if word != "-"]


def _starts(text: str, answer: str) -> bool:
    words, wanted = _words(text), _words(answer)
    return words[: len(wanted)] == wanted and words[len(wanted) : len(wanted) + 1] != ["-"]


def _given(text: str, answers: list[str]) -> set[str]:
    return {one for one in answers if _starts(text, one) or _gives(text, [one])}


def _contains(text: str, answer: str) -> bool:
    words, wanted = _plain(text), _plain(answer)
    return any(words[n : n + len(wanted)] == wanted for n in range(len(words)))


def _same(one: str, other: str, answers: list[str]) -> float:
    given = _given(one, answers), _given(other, answers)
    size = max(len(_plain(answer)) for answer in answers)
    return float(
        bool(given[0] & given[1]) if any(given) else _plain(one)[:size] == _plain(other)[:size]
    )


def _gives(text: str, answers: list[str]) -> float:
    """A continuation counts whole, or up to the end of any of its sentences."""
    ends = [m.end() for m in re.finditer(r"""[.!?…][\])}"'»”’]*(?=\s|$)|[。！？][」』”’]*""", text)]
    wanted = [_plain(answer) for answer in answers]
    return float(any(_plain(text[:end]) in wanted for end in [*ends, len(text)]))


def _nll(answer: dict[str, Any]) -> float:
    return _mean([min(x, MOST) if math.isfinite(x) and x < CAP else CAP for x in answer["nlls"]])


def _shares(answer: dict[str, Any], wanted: list[int]) -> list[float]:
    return [float(a == b) for a, b in zip(answer["argmax_ids"], wanted, strict=True)]


def measures(row: dict[str, Any]) -> dict[str, float]:
    """Return what one line of ``cases.jsonl`` says of its probe."""
    found: dict[str, float] = {}
    if row["forced"]:
        hits = [_shares(answer, answer["target_ids"]) for answer in row["forced"]]
        found["token_acc@tf"] = max(map(_mean, hits))
        found["em@tf"] = float(any(all(hit) for hit in hits))
        found["nll@tf"] = _nll(row["forced"][0])
        if row.get("contrast"):
            right, wrong = _nll(row["forced"][0]), _nll(row["contrast"])
            found["margin@tf"] = math.exp(-right) - math.exp(-wrong)
            found["margin_sign@tf"] = float(wrong > right)
    if row.get("generated") is not None:
        text, answers = row["generated"], row["answers"]
        found["em@gen"] = _gives(text, answers)
        found["answer@gen"] = float(bool(_given(text, answers)))
        found["contains@gen"] = float(
            bool(_given(text, answers)) or any(_contains(text, one) for one in answers)
        )
    if row["expect"] == "unchanged" and row.get("pristine"):
        before = row["pristine"]
        if row["forced"]:
            found["kept@tf"] = _mean(_shares(row["forced"][0], before["forced"][0]["argmax_ids"]))
        if row.get("generated") is not None:
            found["kept@gen"] = _same(row["generated"], before["generated"], row["answers"])
    return found


def scores(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Average within a kind of a request, over its kinds, and over requests."""
    values: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        for name, value in measures(row).items():
            values[row["edit_id"], row["aspect"], row["kind"], name].append(value)
    per_kind: dict[str, list[float]] = defaultdict(list)
    per_aspect: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for (request, aspect, kind, name), listed in values.items():
        per_kind[f"{aspect}.{kind}/{name}"].append(_mean(listed))
        per_aspect[request, aspect, name].append(_mean(listed))
    over: dict[str, list[float]] = defaultdict(list)
    for (_, aspect, name), listed in per_aspect.items():
        over[f"{aspect}/{name}"].append(_mean(listed))
    return {name: _mean(listed) for name, listed in (per_kind | over).items()}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def differences(run: Path) -> tuple[int, float]:
    """Return how many scores of a run were compared, and the largest difference."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    rows = _rows(run / "cases.jsonl")
    compared, worst = 0, 0.0
    for point in results["points"]:
        own = scores([row for row in rows if row["after"] == point["after"]])
        if point["after"] == 0:  # the pristine model has a file of its own
            own = scores(_rows(run / "baseline.jsonl"))
        for name, value in point["metrics"].items():
            if name.split("/")[0].split(".")[0] in ASPECTS:
                compared += 1
                worst = max(worst, abs(own[name] - value))
    return compared, worst


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        sys.stdout.write("{} {} {:.1e}\n".format(path.name, *differences(path)))
