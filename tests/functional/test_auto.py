"""Settings by rule achieve what the rule says, whatever the scale of the model."""

import math

import pytest
import torch

from lightning_edit.exceptions import SolveError
from lightning_edit.functional.auto import (
    step_for_drop,
    subject_distance,
    weight_for_share,
)
from lightning_edit.functional.nullspace import Spectrum
from lightning_edit.functional.solve import Preserved, least_squares


def moment(width: int, scale: float) -> torch.Tensor:
    rows = torch.randn(400, width, generator=torch.Generator().manual_seed(0)).double()
    rows = scale * rows * torch.linspace(0.1, 2, width).double()
    return rows.mT @ rows / len(rows)


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_share_of_a_keys_residual_is_written(scale: float, share: float) -> None:
    C = moment(24, scale)
    key = scale * torch.randn(24, 1, generator=torch.Generator().manual_seed(1)).double()
    norm = float(key.mT @ torch.linalg.solve(C, key))
    preserved = Preserved.of(C, weight_for_share(norm, share))
    solution = least_squares(key, torch.ones(5, 1), preserved)
    assert solution.unwritten == pytest.approx(1 - share, rel=1e-9)


def test_a_typical_keys_norm_is_the_width() -> None:
    keys = torch.randn(500, 12, generator=torch.Generator().manual_seed(2)).double() * 7 + 3
    C = keys.mT @ keys / len(keys)
    norms = (keys * torch.linalg.solve(C, keys.mT).mT).sum(1)
    assert float(norms.mean()) == pytest.approx(12.0)
    assert weight_for_share(12.0, 0.9) == pytest.approx(12 / 9)


@pytest.mark.parametrize("share", [0.0, 1.0, 90.0])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        weight_for_share(640.0, share)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_adams_first_step_takes_the_share_of_a_linear_loss(scale: float) -> None:
    slope = scale * torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    weights = torch.zeros(3, 4, requires_grad=True)

    def loss() -> torch.Tensor:
        return 5.0 + (slope * weights).sum()

    rate = step_for_drop(float(loss().detach()), torch.autograd.grad(loss(), [weights]), 0.4)
    optimizer = torch.optim.Adam([weights], lr=rate, eps=0.0)
    loss().backward()
    optimizer.step()
    assert float(loss().detach()) == pytest.approx(5.0 * 0.6, rel=1e-5)


def test_without_a_gradient_there_is_no_step() -> None:
    assert step_for_drop(2.0, [torch.zeros(3)], 0.5) == 0.0


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_energy_keeps_the_smallest_eigenvalues_of_any_scale(scale: float) -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0]).double() * scale
    spectrum = Spectrum.of(torch.diag(values))
    basis = spectrum.null_space(0.31, "energy")
    assert basis.abs().tolist() == torch.eye(4).double()[:, :2].tolist()
    assert spectrum.energy(2) == pytest.approx(3 * scale)
    with pytest.raises(SolveError, match="raise the threshold"):
        spectrum.null_space(0.05, "energy")


def test_a_gradient_that_is_not_finite_gives_no_quiet_zero() -> None:
    broken = torch.tensor([1.0, float("nan")])
    assert math.isnan(step_for_drop(1.0, [broken], 0.1))
    assert math.isnan(step_for_drop(float("nan"), [torch.ones(2)], 0.1))


def test_the_distance_of_subjects_is_that_within_a_wording() -> None:
    generator = torch.Generator().manual_seed(5)
    offsets = torch.randn(4, 1, 6, generator=generator) * 100  # wordings lie far apart
    subjects = torch.eye(6)[None, :5]  # every two of them at the root of two
    keys = offsets + subjects
    assert subject_distance(keys) == pytest.approx(2**0.5, rel=1e-4)
    assert subject_distance(keys * 7) == pytest.approx(7 * 2**0.5, rel=1e-4)
