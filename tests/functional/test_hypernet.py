"""Formulas of learned editors: running statistics, rows that count, the block, the drift."""

import pytest
import torch

from lightning_edit.functional.hypernet import (
    RunningNorm,
    drift_kl,
    informative_rows,
    residual_block,
)


def test_running_norm_is_the_statistics_of_all_rows_and_survives_saving() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 3, generator=generator) * 5 + 100
    gradients = torch.randn(50, 2, generator=generator)
    norm = RunningNorm(3, 2)
    for start, end in ((0, 1), (1, 1), (1, 20), (20, 50)):
        norm.update(inputs[start:end], gradients[start:end])
    loaded = RunningNorm(3, 2)
    loaded.load_state_dict(norm.state_dict())
    expected = (inputs.double() - inputs.double().mean(0)) / inputs.double().std(0)
    got = loaded(inputs, gradients)[:, :3].double()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    loaded.update(inputs, gradients)
    assert int(loaded.count) == 100


def test_rows_without_input_or_gradient_are_dropped() -> None:
    inputs = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    gradients = torch.tensor([[0.0], [2.0], [3.0]])
    assert informative_rows(inputs, gradients).tolist() == [False, False, True]


def test_block_starts_as_the_identity_and_can_leave_it() -> None:
    rows, down = torch.randn(4, 5), torch.randn(2, 5)
    up = torch.zeros(5, 2, requires_grad=True)
    zero = torch.zeros(5)
    out = residual_block(rows, down, up, zero, torch.ones(5), zero)
    assert torch.equal(out, rows)
    (gradient,) = torch.autograd.grad(out.square().sum(), up)
    assert gradient.abs().min() > 0  # with relu it would be zero for ever


def test_drift_is_kl_from_before_to_after() -> None:
    before = torch.tensor([[0.0, 0.0]])
    after = torch.tensor([[1.0, 3.0]]).softmax(-1).log()
    p, q = torch.tensor([0.5, 0.5]), after[0].exp()
    assert float(drift_kl(before, after)) == pytest.approx(float((p * (p / q).log()).sum()))
    assert float(drift_kl(before, before)) == 0
