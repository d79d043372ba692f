import statistics

import pytest
import torch

from lightning_edit.functional.scores import harmonic_mean

NAN = float("nan")


def test_harmonic_mean_is_that_of_the_standard_library() -> None:
    values = torch.tensor([[0.5, 0.9, 1.0], [0.2, 0.2, 0.2]], dtype=torch.float64)
    expected = [statistics.harmonic_mean(row) for row in values.tolist()]
    assert harmonic_mean(values).tolist() == pytest.approx(expected)


def test_a_part_that_is_zero_makes_the_score_zero_and_one_that_is_missing_does_not() -> None:
    values = torch.tensor([[0.0, 1.0, 1.0], [NAN, 0.5, 0.5]], dtype=torch.float64)
    assert harmonic_mean(values).tolist() == pytest.approx([0.0, 0.5])
