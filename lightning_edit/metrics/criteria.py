"""Criterion scores of multi-question tests, as MQuAKE and RippleEdits define them.

Axis names: ``c`` -- criteria; ``v`` -- values; ``m`` -- modes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.evaluation.judges import JudgeLike, find_judge, judged
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.functional.measures import mean
from lightning_edit.types import ASPECT_OF_CRITERION, Group, Mode

VALUES: tuple[str, ...] = ("passed", "known", "passed_known", "passed_edited")
"""Values that are computed per criterion, see ``docs/metrics.md``."""
MODES: tuple[Mode, ...] = get_args(Mode)
_CRITERIA = tuple(ASPECT_OF_CRITERION)
_RIGHT: Mapping[Mode, Callable[[ProbeScore], float | None]] = {
    "tf": lambda score: score.em,
    "gen": lambda score: score.right_gen,
}
_RULES: Mapping[str, Callable[[Sequence[float]], float]] = {"any": max, "all": min}


def _test_passes(scores: Sequence[ProbeScore], rule: str, mode: Mode) -> float | None:
    """Return 1.0 if a test passes by its rule (any or all), else 0.0; ``None`` if mode not run."""
    right = [value for score in scores if (value := _RIGHT[mode](score)) is not None]
    return _RULES[rule](right) if right else None


def case_values(scores: Sequence[ProbeScore]) -> dict[tuple[str, str, Mode], float]:
    """Score every test of *one* case and average by criterion.

    Args:
        scores: Outcomes of all probes of the case. An outcome without ``pristine`` counts as the
            pristine model's own.

    Returns:
        Values by criterion, one of :data:`VALUES` and mode; what does not apply is absent.
    """
    groups: dict[str, list[ProbeScore]] = {}
    for score in scores:
        if score.group is not None:
            groups.setdefault(score.group.name, []).append(score)
    pristine = {name: [s.pristine or s for s in listed] for name, listed in groups.items()}
    tests = [(g, listed) for listed in groups.values() if (g := _test(listed)) is not None]
    found: dict[tuple[str, str, Mode], list[float]] = {}
    for mode in MODES:
        edit_passed = _test_passes([s for s in scores if s.kind == "rewrite"], "all", mode)
        for test, listed in tests:
            passed = _test_passes(listed, test.rule, mode)
            if passed is None:
                continue
            premises = [pristine[name] for name in test.premises if name in pristine]
            known = all(_test_passes(asked, _rule(asked), mode) for asked in premises)
            values = {"passed": passed, "known": float(known)}
            if known:
                values["passed_known"] = passed
                if edit_passed:
                    values["passed_edited"] = passed
            for name, value in values.items():
                found.setdefault((str(test.criterion), name, mode), []).append(value)
    return {name: mean(listed) for name, listed in found.items()}


def _test(scores: Sequence[ProbeScore]) -> Group | None:
    group = scores[0].group
    return None if group is None or group.criterion is None else group


def _rule(scores: Sequence[ProbeScore]) -> str:
    group = scores[0].group
    return "any" if group is None else group.rule


class CriterionScores(Metric):
    """Pass rates of multi-question tests by criterion, overall and where premises are known.

    ``compute`` returns ``<aspect>.<criterion>/<value>@<mode>``, means over cases of
    :func:`case_values`, and ``<aspect>.<criterion>/tests``, the number of tests. ``passed`` is over
    all tests; ``known`` is the share of tests whose premises the pristine model passes;
    ``passed_known`` is the score of those only; ``passed_edited`` of those whose edits also
    succeeded. States are sums, as in :class:`~lightning_edit.metrics.AspectScores`.

    Args:
        judge: What decides whether a generated text is right, see
            :mod:`lightning_edit.evaluation.judges`.
        **kwargs: As for ``torchmetrics.Metric``.
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor
    counts: Tensor
    tests: Tensor

    def __init__(self, judge: JudgeLike = "answer_first", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.judge = find_judge(judge)
        shape = (len(_CRITERIA), len(VALUES), len(MODES))
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        for name, size in [("counts", shape), ("tests", shape[:1])]:
            self.add_state(name, torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Sequence[ProbeScore]) -> None:
        """Add probe outcomes of whole cases.

        Args:
            scores: Outcomes; all of one case must come in one call.
        """
        cases: dict[str, list[ProbeScore]] = {}
        for score in judged(scores, self.judge):
            name = f"request {score.edit_id}" if score.case is None else f"case {score.case}"
            cases.setdefault(name, []).append(score)
        for case in cases.values():
            for (criterion, name, mode), value in case_values(case).items():
                place = _CRITERIA.index(criterion), VALUES.index(name), MODES.index(mode)
                self.sums[place] += value
                self.counts[place] += 1
            for group in {s.group for s in case if s.group is not None}:
                if group.criterion is not None:
                    self.tests[_CRITERIA.index(group.criterion)] += 1

    def compute(self) -> dict[str, Tensor]:
        """Compute pass rates over cases by metric name, and the number of tests."""
        result = {}
        for row, criterion in enumerate(_CRITERIA):
            if self.tests[row] == 0:
                continue
            group = f"{ASPECT_OF_CRITERION[criterion]}.{criterion}"
            for column, value in enumerate(VALUES):
                for depth, mode in enumerate(MODES):
                    count = self.counts[row, column, depth]
                    if count > 0:
                        name = f"{group}/{value}@{mode}"
                        result[name] = self.sums[row, column, depth] / count
            result[f"{group}/tests"] = self.tests[row]
        return result
