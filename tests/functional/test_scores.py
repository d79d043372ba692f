"""Spreads of harmonic means against NumPy's plain way."""

import statistics

import pytest
import torch

from lightning_edit.functional.resample import harmonic_mean, resampled_scores

NAN = float("nan")


def test_harmonic_mean_is_that_of_the_standard_library() -> None:
    values = torch.tensor([[0.5, 0.9, 1.0], [0.2, 0.2, 0.2]], dtype=torch.float64)
    expected = [statistics.harmonic_mean(row) for row in values.tolist()]
    assert harmonic_mean(values).tolist() == pytest.approx(expected)


def test_a_part_that_is_zero_makes_the_score_zero_and_one_that_is_missing_does_not() -> None:
    values = torch.tensor([[0.0, 1.0, 1.0], [NAN, 0.5, 0.5]], dtype=torch.float64)
    assert harmonic_mean(values).tolist() == pytest.approx([0.0, 0.5])


def test_one_resample_is_the_score_of_the_drawn_facts() -> None:
    values = torch.rand(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values[:, 2, 1] = NAN
    found = resampled_scores(values, resamples=4, seed=7)
    drawn = torch.randint(5, (4, 5), generator=torch.Generator().manual_seed(7))
    for resample in range(4):
        for candidate in range(2):
            rows = values[candidate][drawn[resample]]
            expected = statistics.harmonic_mean(rows.nanmean(0).tolist())
            assert found[candidate, resample].item() == pytest.approx(expected)


def test_the_spread_is_the_standard_error_of_a_mean_where_the_score_is_one() -> None:
    one = torch.rand(1, 400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    spread = resampled_scores(one, resamples=2000, seed=0).std()
    assert spread.item() == pytest.approx((one.std() / 400**0.5).item(), rel=0.08)
