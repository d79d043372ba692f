"""The analytic gradient of the ridge solve is autograd's, with few keys and with many."""

import pytest
import torch

from lightning_edit.functional.given_gradient import with_gradient
from lightning_edit.functional.ridge_update import RidgeUpdate
from lightning_edit.functional.value_network import (
    RunningStandardisation,
    ValueNetwork,
    rectified_block,
)


@pytest.mark.parametrize("tokens", [1, 3, 7, 40])
def test_gradient_of_the_solve(tokens: int) -> None:
    draw = torch.Generator().manual_seed(tokens)
    keys = torch.randn(tokens, 7, dtype=torch.float64, generator=draw)
    shifts = torch.randn(tokens, 5, dtype=torch.float64, generator=draw, requires_grad=True)
    gamma = torch.randn(5, 7, dtype=torch.float64, generator=draw)
    log_ridge = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    system = keys.mT @ keys + log_ridge.exp() * torch.eye(7, dtype=torch.float64)
    wanted = torch.linalg.solve(system, keys.mT @ shifts).mT
    by_shifts, by_ridge = torch.autograd.grad((wanted * gamma).sum(), [shifts, log_ridge])
    found = RidgeUpdate.solve(keys, shifts.detach(), -0.7)
    torch.testing.assert_close(found.dense(), wanted.detach(), rtol=1e-10, atol=1e-12)
    got = found.gradient_of_shifts(gamma)
    torch.testing.assert_close(got, by_shifts, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.gradient_of_log_ridge(got), by_ridge, rtol=1e-9, atol=1e-12)


def test_a_small_ridge_writes_exactly() -> None:
    keys, shifts = torch.eye(4)[:2], torch.tensor([[1.0], [-2.0]])
    update = RidgeUpdate.solve(keys, shifts, log_ridge=-30.0)
    assert torch.allclose(keys.double() @ update.dense().mT, shifts.double(), atol=1e-10)
    assert update.unwritten.abs().max() < 1e-10
    assert float(RidgeUpdate.solve(keys, shifts, log_ridge=30.0).dense().norm()) < 1e-10


def test_a_given_gradient_is_scaled_and_added() -> None:
    one, two = torch.ones(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    given = [torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0, 4.0])]
    for _ in range(2):
        (with_gradient(torch.tensor(7.0), [one, two], given) / 4).backward()
    assert torch.equal(one.grad, given[0] / 2)  # type: ignore[arg-type]
    assert torch.equal(two.grad, given[1] / 2)  # type: ignore[arg-type]


def test_the_block_learns_from_zero() -> None:
    rows, down = torch.randn(4, 3), torch.randn(2, 3)
    up, bias = torch.zeros(3, 2, requires_grad=True), torch.zeros(3, requires_grad=True)
    out = rectified_block(rows, down, up, bias, torch.ones(3), torch.zeros(3))
    assert torch.equal(out.detach(), rows)
    out.sum().backward()
    assert torch.equal(bias.grad, torch.full((3,), 4.0))  # type: ignore[arg-type]
    assert torch.allclose(up.grad, (rows @ down.mT).sum(0).expand(3, 2))  # type: ignore[arg-type]


def test_statistics_do_not_depend_on_mini_batches_unless_as_code() -> None:
    rows = torch.randn(9, 4, dtype=torch.float64) * 3 + 1
    for variance, same in (("exact", True), ("as_code", False)):
        whole, parts = (RunningStandardisation(4, variance).double() for _ in range(2))  # type: ignore[arg-type]
        whole.update(rows)
        for part in rows.split([2, 1, 6]):
            parts.update(part)
        assert torch.allclose(whole.mean, rows.mean(0))
        assert torch.allclose(whole.squares, parts.squares) is same
    exact = RunningStandardisation(4).double()
    assert torch.equal(exact(rows), rows)
    exact.update(rows)
    assert torch.allclose(exact(rows), (rows - rows.mean(0)) / rows.std(0), atol=1e-6)


def test_the_untrained_network_steps_down_the_standardised_gradient() -> None:
    network = ValueNetwork(4, 3, 2, rank=2, step_size=0.1).double()
    keys, gradients = torch.randn(6, 4).double(), torch.randn(6, 3).double()
    network.update_norm(keys, gradients)
    with torch.no_grad():
        shifts = network(keys, gradients, layer=1)
    k = (keys - keys.mean(0)) / keys.std(0)
    g = (gradients - gradients.mean(0)) / gradients.std(0)
    assert torch.allclose(shifts, -0.1 * (keys * k).sum(1, keepdim=True) * g, atol=1e-6)
