"""Judges of generated texts: named ones, a user's own, and what their verdicts decide."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.__main__ import main
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.evaluation.judges import answer_first, exact, find_judge, judged
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import DataError
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.metrics import AspectScores, CriterionScores, summarise
from lightning_edit.storage.run_folder import RunFolder
from lightning_edit.types import EditRequest, Group


def score(generated: str | None, **changes: Any) -> ProbeScore:
    made = ProbeScore("e", "rewrite", "The capital is", ("Rome",), "target", generated=generated)
    return replace(made, **changes)


def test_named_judges_are_the_two_rules() -> None:
    assert find_judge("answer_first") is None  # every row has that verdict
    assert find_judge(answer_first) is None
    assert find_judge("exact") is exact
    (found,) = judged([score("Rome, Italy")], find_judge("exact"))
    assert (found.judged, found.answer_gen, found.right_gen) == (0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="answer_first, exact, or a function"):
        find_judge("strict")


def test_a_judge_of_ones_own_is_asked_once_about_equal_texts() -> None:
    asked = []

    def judge(prompt: str, generated: str, answers: Sequence[str]) -> float:
        asked.append((prompt, generated, tuple(answers)))
        return 0.75 if "eternal" in generated else 0.0

    scores = [score("the eternal city"), score("the eternal city"), score("Lyon"), score(None)]
    found = judged(scores, judge)
    assert [one.judged for one in found] == [0.75, 0.75, 0.0, None]
    assert [one.right_gen for one in found] == [1.0, 1.0, 0.0, None]
    assert asked == [
        ("The capital is", "the eternal city", ("Rome",)),
        ("The capital is", "Lyon", ("Rome",)),
    ]
    assert summarise(found[:1])["reliability/judge@gen"] == 0.75
    assert "judge@gen" not in score("Rome").measures()


@pytest.mark.parametrize("verdict", ["yes", 2, -0.1, float("nan"), None])
def test_what_is_no_verdict_is_an_error(verdict: Any) -> None:
    with pytest.raises(ValueError, match=r"answered .* about 'Lyon' after 'The capital is'"):
        judged([score("Lyon")], lambda *_: verdict)


def test_verdicts_are_kept_in_rows() -> None:
    (before,) = judged([score("Lyon")], lambda *_: True)
    (after,) = judged([score("Rome")], lambda *_: False)
    row = json.loads(json.dumps(replace(after, pristine=before).to_row()))
    read = ProbeScore.from_row(row)
    assert read.pristine is not None
    assert (read.judged, read.pristine.judged) == (0.0, 1.0)
    assert "judged" not in score("Rome").to_row()
    plain = ProbeScore.from_row(replace(after, pristine=score("Lyon")).to_row())
    assert plain.pristine is not None
    assert plain.pristine.judged is None


def test_metrics_take_a_judge() -> None:
    metric = AspectScores(judge=lambda prompt, generated, answers: generated == "Lyon")
    metric.update([score("Lyon"), score("Rome", edit_id="f")])
    values = metric.compute()
    assert values["reliability/judge@gen"] == 0.5
    assert values["reliability/answer@gen"] == 0.5
    test = Group("t", "multi_hop")
    hop = score("Rome, Italy", kind="multi_hop", group=test)
    passed = {}
    for name in ("answer_first", "exact"):
        tests = CriterionScores(judge=name)
        tests.update([hop])
        passed[name] = tests.compute()["portability.multi_hop/passed@gen"].item()
    assert passed == {"answer_first": 1.0, "exact": 0.0}


class _Scorer(Scorer):
    """A scorer that writes one text."""

    layout = PassLayout("padded")  # type: ignore[assignment]  # it runs no passes

    def __init__(self) -> None:
        self.modes = ("gen",)

    def score(self, probes: Sequence[ScoredProbe]) -> list[ProbeScore]:
        return [
            replace(score("Rome, Italy"), edit_id=item.edit_id, prompt=item.probe.prompt)
            for item in probes
        ]


def test_a_run_is_resumed_with_its_judge(tmp_path: Path) -> None:
    requests = [EditRequest("e", "The capital is", "Rome")]
    folder = RunFolder(tmp_path)
    folder.write_json(folder.passes, PassLayout("padded").to_dict())
    scorer = _Scorer()
    begun = Evaluation(scorer, progress=False, judge="exact")
    begun.take_baseline(requests, folder)
    (found,) = begun.scores(requests)
    assert found.judged == 0.0
    assert found.pristine is not None
    assert found.pristine.judged == 0.0
    Evaluation(scorer, progress=False, judge="exact").take_baseline(requests, folder)
    with pytest.raises(DataError, match="scored by a judge of its own"):
        Evaluation(scorer, progress=False).take_baseline(requests, folder)


@pytest.mark.slow
def test_the_command_line_takes_a_judge(tmp_path: Path) -> None:
    words = "edit --model FTM --model.steps 1 --data AtlasDataModule --data.limit 1 --modes [gen]"
    judge = "lightning_edit.evaluation.judges.exact"
    assert main([*words.split(), "--judge", judge, "--run", str(tmp_path)]) == 0
    point = json.loads((tmp_path / "results.json").read_text())["points"][-1]
    assert point["metrics"]["reliability/judge@gen"] == point["metrics"]["reliability/em@gen"]
