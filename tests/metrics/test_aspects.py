"""The report's numbers; what every metric must do is in ``test_every_metric.py``."""

import random
from dataclasses import replace

import pytest
import torch

from lightning_edit.evaluation.outcomes import AnswerScore, ProbeScore, compare
from lightning_edit.metrics import AspectScores, summarise
from lightning_edit.metrics.aspects import counterfact_names
from tests.metrics.outcomes import random_outcomes, reference


def computed(metric: AspectScores) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_reference(seed: int) -> None:
    outcomes = random_outcomes(seed, 20)
    assert summarise(outcomes) == pytest.approx(reference(outcomes), abs=1e-12)


def test_requests_in_any_order_and_any_number_of_updates() -> None:
    outcomes = random_outcomes(7, 30)
    ids = list(dict.fromkeys(outcome.edit_id for outcome in outcomes))
    random.Random(0).shuffle(ids)
    metric = AspectScores()
    for name in ids:
        metric.update([outcome for outcome in outcomes if outcome.edit_id == name])
    assert computed(metric) == pytest.approx(reference(outcomes), abs=1e-12)


def test_a_request_with_many_probes_does_not_outweigh_another() -> None:
    outcomes = [o for o in random_outcomes(1, 40) if o.kind == "neighborhood"]
    by_size: dict[str, list] = {}
    for outcome in outcomes:
        by_size.setdefault(outcome.edit_id, []).append(outcome)
    many = next(rows for rows in by_size.values() if len(rows) == 3)
    one = next(rows for rows in by_size.values() if len(rows) == 1 and rows[0].kept != many[0].kept)
    kept = sum(row.kept for row in many) / 3
    assert summarise([*many, *one])["locality/kept@tf"] == pytest.approx((kept + one[0].kept) / 2)


def test_what_the_pristine_model_could_not_answer_is_not_counted_as_kept() -> None:
    answer = AnswerScore("Rome", (1,), (0,), (0.5,))
    nothing = replace(answer, nlls=(1000.0,))

    def probe(edit: str, before: AnswerScore, after: AnswerScore) -> ProbeScore:
        asked = ProbeScore(edit, "neighborhood", "It is", ("Rome",), "unchanged", (before,))
        return compare(replace(asked, forced=(after,)), asked)

    found = summarise(
        [
            probe("0", answer, answer),
            probe("1", answer, nothing),
            probe("2", nothing, nothing),
            probe("3", nothing, answer),
        ]
    )
    assert found["locality/kept@tf"] == 0.5
    assert found["locality/kept@tf/n"] == 2
    assert (found["locality/n"], found["locality/probes"]) == (4, 4)
    assert "locality/nll@tf/n" not in found
    assert "locality/kept@tf" not in summarise([probe("2", nothing, nothing)])


def test_absent_kinds_have_no_key_and_nothing_is_nan() -> None:
    outcomes = [o for o in random_outcomes(3, 5) if o.kind == "rewrite"]
    names = summarise(outcomes)
    assert {name.split("/")[0] for name in names} == {"reliability", "counterfact"}
    assert "counterfact/S@tf" not in names
    assert "reliability/kept@tf" not in names
    assert all(value == value for value in names.values())
    assert summarise([]) == {}


def test_counterfacts_harmonic_mean_is_the_published_one_and_zero_where_a_part_is() -> None:
    values = {
        f"{group}/margin_sign@tf": torch.tensor(value, dtype=torch.float64)
        for group, value in [
            ("reliability", 1.0), ("generalization", 0.5), ("locality.neighborhood", 0.25),
        ]
    }  # fmt: skip
    named = counterfact_names(values)
    assert named["counterfact/S@tf"].item() == pytest.approx(3 / (1 + 2 + 4))
    values["generalization/margin_sign@tf"] = torch.tensor(0.0, dtype=torch.float64)
    assert counterfact_names(values)["counterfact/S@tf"] == 0


def test_states_are_few_and_sums() -> None:
    metric = AspectScores()
    assert sum(state.numel() for state in metric.metric_state.values()) < 1000
    assert all(isinstance(state, torch.Tensor) for state in metric.metric_state.values())
