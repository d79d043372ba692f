"""Raw results to measures, rows on disk, and the comparison with the pristine model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import AnswerScore, ProbeScore, compare
from lightning_edit.exceptions import DataError
from lightning_edit.storage.jsonl import read_rows, write_rows


def outcome(edit_id: str = "e", argmax: tuple[int, ...] = (1, 9), **changes: object) -> ProbeScore:
    values: dict[str, object] = {
        "edit_id": edit_id,
        "kind": "neighborhood",
        "prompt": "The capital of Italy is",
        "answers": ("Rome", "Roma"),
        "expect": "unchanged",
        "forced": (
            AnswerScore("Rome", (1, 2), argmax, (0.5, 1.5)),
            AnswerScore("Roma", (1, 3), (1, 3), (0.1, 0.1)),
        ),
        "contrast": AnswerScore("Lyon", (7,), (1,), (3.0,)),
        "generated": "Rome. It is old",
    }
    return ProbeScore(**(values | changes))


def test_measures_of_one_outcome() -> None:
    score = outcome()
    assert score.token_acc == 1.0  # the alias
    assert score.em == 1.0
    assert score.nll == 1.0  # the preferred answer
    assert score.margin == pytest.approx(0.367879441 - 0.049787068)
    assert score.margin_sign == 1.0
    assert (score.answer_gen, score.em_gen, score.contains_gen) == (1.0, 1.0, 1.0)
    longer = outcome(generated="Rome, Italy")
    assert (longer.answer_gen, longer.em_gen, longer.contains_gen) == (1.0, 0.0, 1.0)
    inside = outcome(generated="It is Rome")
    assert (inside.answer_gen, inside.em_gen, inside.contains_gen) == (0.0, 0.0, 1.0)
    assert score.kept is None
    assert score.kept_gen is None
    only = outcome(forced=score.forced[:1])
    assert (only.token_acc, only.em) == (0.5, 0.0)


def test_kept_compares_choices_at_the_places_of_the_preferred_answer() -> None:
    after = compare(outcome(argmax=(4, 9), generated="rome! It  is old."), outcome())
    assert after.kept == 0.5
    assert after.kept_gen == 1.0
    # What follows the answer is no part of it.
    assert compare(outcome(generated="Rome."), outcome()).kept_gen == 1.0
    assert compare(outcome(generated="Roma."), outcome()).kept_gen == 0.0
    assert compare(outcome(generated="Milan."), outcome()).kept_gen == 0.0
    assert {"kept@tf", "kept@gen"} <= after.measures().keys()


def test_kept_counts_only_where_nothing_may_change() -> None:
    changes = {"kind": "rewrite", "expect": "target"}
    after = compare(outcome(**changes), outcome(**changes))
    assert after.kept == 1.0
    assert not {"kept@tf", "kept@gen"} & after.measures().keys()


@pytest.mark.parametrize("cap", [1000.0, float("nan"), float("inf")])
def test_what_a_broken_model_prefers_is_not_kept(cap: float) -> None:
    """The argmax of logits that are no numbers is the same token every time."""
    other = outcome().forced[1]
    broken = outcome(forced=(AnswerScore("Rome", (1, 2), (1, 0), (0.5, cap)), other), generated="")
    same = replace(broken, generated="Rome. It is old")
    sound = outcome(argmax=(1, 0))
    for before, after, kept in (
        (sound, sound, 1.0), (sound, same, 0.0), (sound, broken, 0.0),
        (broken, broken, None), (broken, sound, None), (same, sound, None),
    ):  # fmt: skip
        found = compare(after, before)
        assert (found.kept, found.kept_gen) == (kept, kept)
        assert ("kept@tf" in found.measures()) is ("kept@gen" in found.measures())
        assert ("kept@tf" in found.measures()) is (kept is not None)
    # Without teacher forcing nothing tells; an alias that is impossible does not decide.
    silent = outcome(forced=(), generated="")
    assert compare(silent, silent).kept_gen == 1.0
    alias = replace(sound, forced=(sound.forced[0], replace(other, nlls=(0.1, cap))))
    assert compare(alias, sound).kept == 1.0


def test_another_edits_contrast_says_nothing() -> None:
    after = compare(outcome("e"), outcome("other"))
    assert after.pristine is not None
    assert after.pristine.contrast is None
    same = compare(outcome("e"), outcome("e"))
    assert same.pristine is not None
    assert same.pristine.margin == same.margin


def test_different_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="one question"):
        compare(outcome(), outcome(prompt="The capital of Spain is"))


def test_rows_round_trip_through_a_file(tmp_path: Path) -> None:
    scores = [
        compare(outcome(generated="line\u2028separator “quoted”"), outcome()),
        outcome(forced=(), contrast=None),
        outcome(generated=None),
    ]
    path = tmp_path / "run" / "cases.jsonl"
    write_rows(path, [score.to_row() for score in scores])
    assert [ProbeScore.from_row(row) for row in read_rows(path)] == scores
    assert [entry.name for entry in path.parent.iterdir()] == ["cases.jsonl"]
    first = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert first["measures"]["kept@tf"] == 1.0
    assert first["pristine"]["measures"]["em@tf"] == 1.0


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    with pytest.raises(DataError, match=r"cases.jsonl, line 2: not JSON"):
        read_rows(path)
    path.write_text("3\n")
    with pytest.raises(DataError, match="expected a JSON object, got int"):
        read_rows(path)


def test_baseline_finds_the_question_whichever_edit_asks() -> None:
    baseline = Baseline.from_rows(json.loads(json.dumps(Baseline([outcome()]).to_rows())))
    assert len(baseline) == 1
    (after,) = baseline.compare([outcome("another edit")])
    assert after.kept == 1.0
    with pytest.raises(DataError, match="no outcome for 'Spain'"):
        baseline.compare([outcome(prompt="Spain")])


def test_reading_results_needs_no_torch() -> None:
    code = (
        "import sys, lightning_edit.evaluation.baseline, lightning_edit.evaluation.outcomes;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_probes_of_one_question_keep_their_own_contrast() -> None:
    """A rephrasing may ask what the edit's own prompt asks, and have no contrast."""
    own, again = outcome(kind="rewrite"), outcome(kind="subject_alias", contrast=None)
    compared = Baseline([own, again]).compare([own, again])
    assert compared[0].pristine is not None
    assert compared[0].pristine.margin == own.margin is not None
    assert compared[1].pristine is not None
    assert compared[1].pristine.margin is None
