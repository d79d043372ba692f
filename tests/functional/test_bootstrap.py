"""Intervals against theory, and resamples against drawing them one by one."""

import numpy as np
import pytest

from lightning_edit.functional.bootstrap import Resampling, wilson


@pytest.mark.parametrize("n", [1, 20, 100])
def test_a_share_of_all_or_none_keeps_an_interval(n: int) -> None:
    all_right = Resampling(n).mean(np.ones((1, n)))
    none_right = Resampling(n).mean(np.zeros((1, n)))
    assert all_right is not None
    assert none_right is not None
    assert all_right.high == 1.0
    # Of Wilson's two ends the inner one is 1 / (1 + z² / n).
    assert all_right.low == pytest.approx(n / (n + 1.95996**2), rel=1e-4)
    assert (none_right.low, none_right.high) == pytest.approx((0.0, 1 - all_right.low))
    # The same with several seeds, and where values are no zeros and ones by nature.
    several = Resampling(n, 3).mean(np.ones((3, n)))
    assert several == all_right


def test_wilson_is_what_others_compute() -> None:
    # statsmodels 0.14: proportion_confint(7, 10, method="wilson")
    assert wilson(0.7, 10) == pytest.approx((0.3967781, 0.8922087), abs=1e-6)


def test_shares_are_wilsons_and_other_means_are_resampled() -> None:
    generator = np.random.default_rng(1)
    share = (generator.random((1, 200)) < 0.3) * 1.0
    share[0, :50] = np.nan
    found = Resampling(200).mean(share)
    assert found is not None
    assert (found.low, found.high) == wilson(found.value, 150)
    other = generator.random((1, 200))
    spread = Resampling(200).mean(other)
    assert spread is not None
    assert spread.half == pytest.approx(1.96 * other.std() / 200**0.5, rel=0.1)


def test_columns_of_candidates_share_their_draws() -> None:
    values = np.random.default_rng(2).random((2, 5, 3))
    values[:, 2, 1] = np.nan
    draws = Resampling(5, resamples=4, seed=7)
    found = draws.table_means(values)
    for number, counts in enumerate(draws._requests):
        rows = np.repeat(values, counts.astype(int), axis=1)
        assert found[:, number] == pytest.approx(np.nanmean(rows, axis=1))


def test_the_spread_is_the_standard_error_of_a_mean() -> None:
    one = np.random.default_rng(3).random((1, 400, 1))
    spread = Resampling(400, resamples=2000).table_means(one).std()
    assert spread == pytest.approx(one.std() / 400**0.5, rel=0.08)
