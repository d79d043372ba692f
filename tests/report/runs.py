"""Folders of runs made of invented answers, for tests of the page and the figures."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_edit.evaluation.outcomes import AnswerScore, ProbeScore, compare
from lightning_edit.session.points import points_of
from lightning_edit.storage.results import build

KINDS = (
    ("rewrite", "target", "rewrite"),
    ("rephrase", "target", "once more"),
    ("neighborhood", "unchanged", "the neighbour of"),
    ("other_attribution", "unchanged", "the colour of"),
    ("one_hop", "answer", "the mayor of the capital of"),
)
_WORDS = (
    "amber",
    "birch",
    "cobalt",
    "delta",
    "ember",
    "fjord",
    "grove",
    "harbour",
    "island",
    "jade",
)


def write_run(
    folder: Path,
    edits: int = 4,
    editor: str = "ROME",
    protocol: str = "single",
    after: Sequence[int] | None = None,
    probes: int = 5,
    prompts: Sequence[str] = (),
    answers: Sequence[str] = (),
    extra: Mapping[str, Callable[[int], float]] | None = None,
    generated: bool = True,
    seed: int = 0,
) -> Path:
    """Write ``results.json`` and ``cases.jsonl`` of an invented run, and return its folder.

    ``prompts`` and ``answers`` replace invented ones, in order; ``extra`` maps names of further
    numbers to a function of the edits in force.
    """
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    points = [1] if protocol == "single" else list(after or [edits])
    asked = [_questions(draw, number, probes, prompts, answers) for number in range(edits)]
    rows = []
    for point in points:
        shown = edits if protocol == "single" else point
        for question in (q for edit in asked[:shown] for q in edit):
            score = _outcome(draw, generated, *question)
            rows.append({"after": point, **score.to_row()})
    lines = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    (folder / "cases.jsonl").write_text(lines, encoding="utf-8")
    taken = points_of(rows)
    for point in taken:
        point["metrics"] |= {name: make(point["after"]) for name, make in (extra or {}).items()}
    results = build(
        editor={"class": editor, "args": {"layers": [3]}},
        language_model={"name": "some/folder/tiny", "hash": "ab" * 32, "dtype": "float32"},
        data={"class": "JSONLDataModule", "args": {"path": "facts.jsonl"}, "hash": "cd" * 32},
        protocol=protocol,  # type: ignore[arg-type]  # one of the three names
        batch_size=1,
        seed=seed,
        points=taken,
        timing={"edit_seconds": 0.1 * edits, "evaluate_seconds": 1.0, "edits": edits},
    )
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def write_ripples(
    folder: Path, edits: Sequence[str], facts: int = 30, prompts: Sequence[str] = (), seed: int = 0
) -> None:
    """Write an invented ``ripple.jsonl``."""
    draw = random.Random(seed)
    rows = []
    for edit in edits:
        for number in range(facts):
            distance = 1 + number * 4 // facts
            before = draw.uniform(0, 1)
            harm = max(draw.gauss(2.5 / distance, 1), -before)
            rows.append(
                {
                    "edit_id": edit,
                    "fact": {
                        "subject": f"town {number}",
                        "relation": "lies in",
                        "object": f"town {number // 3}",
                        "prompt": prompts[0] if prompts else f"Town {number} lies in",
                    },
                    "distance": distance if number < facts - 2 else None,
                    "similarity": draw.random(),
                    "set": "near",
                    "nll_before": before,
                    "nll_after": before + harm,
                    "rank_before": 0,
                    "rank_after": 3,
                    "right_before": True,
                    "right_after": harm < 1.5,
                }
            )
    (folder / "ripple.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _questions(
    draw: random.Random, number: int, probes: int, prompts: Sequence[str], answers: Sequence[str]
) -> list[tuple[str, str, str, str, str, str]]:
    place = " ".join(draw.choices(_WORDS, k=3)) + f" {number}"
    new = answers[number % len(answers)] if answers else f"{draw.choice(_WORDS)} town {number}"
    old = f"{draw.choice(_WORDS)} castle {number}"
    listed = []
    for count in range(probes):
        kind, expect, words = KINDS[count % len(KINDS)]
        prompt = f"Question {count} about {words} {place}, which lies far away, has the answer"
        if kind == "rewrite" and number < len(prompts):
            prompt = prompts[number]
        right = new if expect == "target" else f"{draw.choice(_WORDS)} {draw.choice(_WORDS)}"
        kind = "rephrase" if kind == "rewrite" and count else kind
        listed.append((f"edit:{number}", kind, expect, prompt, right, old))
    return listed


def _outcome(
    draw: random.Random,
    generated: bool,
    edit: str,
    kind: str,
    expect: str,
    prompt: str,
    right: str,
    old: str,
) -> ProbeScore:
    good = draw.random() < (0.9 if expect == "target" else 0.7)
    first = right if expect == "unchanged" else old
    now = right if good else draw.choice(_WORDS)

    def scored(text: str, likely: bool) -> AnswerScore:
        nlls = tuple(draw.uniform(0, 0.3) if likely else draw.uniform(1, 6) for _ in range(3))
        return AnswerScore(text, (1, 2, 3), (1, 2, 3) if likely else (1, 2, 9), nlls)

    values: dict[str, Any] = {
        "edit_id": edit, "kind": kind, "prompt": prompt, "answers": (right,), "expect": expect
    }  # fmt: skip
    pristine = ProbeScore(
        **values, forced=(scored(right, first == right),), generated=first if generated else None
    )
    return compare(
        ProbeScore(**values, forced=(scored(right, good),), generated=now if generated else None),
        pristine,
    )
