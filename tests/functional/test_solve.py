import pytest
import torch
from torch import Tensor

from lightning_edit.exceptions import SolveError
from lightning_edit.functional.solve import Preserved, Solution, least_squares

RTOL = 1e-9  # float64 throughout; the identities hold to about 2e-13
F, D, N = 24, 10, 5


def dense(solution: Solution) -> Tensor:
    return solution.left @ solution.right


def close(a: Tensor, b: Tensor, rtol: float = RTOL) -> bool:
    return float((a - b).norm()) <= rtol * float(b.norm())


@pytest.fixture
def system() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(F, 4 * F, generator=generator, dtype=torch.float64)
    keys = torch.randn(F, N, generator=generator, dtype=torch.float64)
    residuals = torch.randn(D, N, generator=generator, dtype=torch.float64)
    return keys, residuals, sample @ sample.mT / sample.shape[1]


def test_gradient_of_the_objective_is_zero(system: tuple[Tensor, Tensor, Tensor]) -> None:
    K, R, C = system
    history = torch.eye(F, dtype=torch.float64) * 0.3
    delta = dense(least_squares(K, R, Preserved.of(C, 3.0, history, ridge=0.7)))
    delta.requires_grad_()
    objective = (
        ((delta @ K - R) ** 2).sum()
        + 3.0 * (delta @ C * delta).sum()
        + (delta @ history * delta).sum()
        + 0.7 * (delta**2).sum()
    )
    (gradient,) = torch.autograd.grad(objective, delta)
    assert gradient.abs().max() < 1e-10


def test_woodbury_equals_direct(system: tuple[Tensor, Tensor, Tensor]) -> None:
    K, R, C = system
    direct = R @ K.mT @ torch.linalg.inv(20 * C + K @ K.mT)
    assert close(dense(least_squares(K, R, Preserved.of(C, 20.0))), direct)
    wide, more = K.repeat(1, 6), R.repeat(1, 6)  # 30 keys, more than columns: the direct branch
    direct = more @ wide.mT @ torch.linalg.inv(20 * C + wide @ wide.mT)
    assert close(dense(least_squares(wide, more, Preserved.of(C, 20.0))), direct)


def test_rome_is_equality_with_one_key_and_the_limit_of_ridge(
    system: tuple[Tensor, Tensor, Tensor],
) -> None:
    K, R, C = system
    k, r = K[:, :1], R[:, :1]
    direction = torch.linalg.solve(C, k)
    rome = r @ direction.mT / (direction.mT @ k)
    equality = least_squares(k, r, Preserved.of(C), "equality")
    assert close(dense(equality), rome)
    assert equality.unwritten < 1e-12
    assert close(dense(least_squares(k, r, Preserved.of(C, 1e-8))), rome, 1e-6)


def test_ridge_emmet_is_memit(system: tuple[Tensor, Tensor, Tensor]) -> None:
    K, R, C = system
    emmet = least_squares(K, R, Preserved.of(C, 1000.0), "equality", damping=0.1)
    assert close(dense(emmet), dense(least_squares(K, R, Preserved.of(C, 100.0))))


def test_sequence_with_history_is_the_joint_batch(system: tuple[Tensor, Tensor, Tensor]) -> None:
    K, V, C = system
    weight = torch.zeros(D, F, dtype=torch.float64)
    history = torch.zeros(F, F, dtype=torch.float64)
    for edit in range(N):
        k, v = K[:, edit : edit + 1], V[:, edit : edit + 1]
        weight = weight + dense(
            least_squares(k, v - weight @ k, Preserved.of(C, 2.0, history, ridge=0.1))
        )
        history = history + k @ k.mT
    assert close(weight, dense(least_squares(K, V, Preserved.of(C, 2.0, ridge=0.1))))


def test_projected_update_leaves_the_rest_alone(system: tuple[Tensor, Tensor, Tensor]) -> None:
    K, R, C = system
    basis = torch.linalg.eigh(C).eigenvectors[:, :9]
    P = basis @ basis.mT
    past = K[:, :2] @ K[:, :2].mT
    delta = dense(least_squares(K, R, Preserved.of(None, history=past, ridge=1.5, basis=basis)))
    assert close(delta @ P, delta)
    identity = torch.eye(F, dtype=torch.float64)
    authors = torch.linalg.solve(P @ (K @ K.mT + past) + 1.5 * identity, P @ K @ R.mT).mT
    assert close(delta, authors)


def test_identity_needs_no_matrix(system: tuple[Tensor, Tensor, Tensor]) -> None:
    K, R, _ = system
    plain = dense(least_squares(K, R, Preserved.of(ridge=2.0)))
    assert close(plain, dense(least_squares(K, R, Preserved.of(torch.eye(F), 2.0))))


def test_zero_residual_gives_zero_update(system: tuple[Tensor, Tensor, Tensor]) -> None:
    K, R, C = system
    solution = least_squares(K, torch.zeros_like(R), Preserved.of(C))
    assert not dense(solution).any()
    assert solution.unwritten == 0.0


def test_errors_name_layer_weight_and_remedy(system: tuple[Tensor, Tensor, Tensor]) -> None:
    K, R, C = system
    with pytest.raises(SolveError, match=r"h\.3 \(lambda=5, ridge=0\).*more text"):
        Preserved.of(C - 10 * torch.eye(F), 5.0, where="h.3")
    with pytest.raises(SolveError, match="positive ridge"):
        Preserved.of()
    broken = K.clone()
    broken[0, 1] = torch.inf
    told = rf"keys of 1 of {K.shape[1]} columns hold .*model's own states there are not; load"
    with pytest.raises(SolveError, match=told) as raised:
        least_squares(broken, R, Preserved.of(C))
    assert "target search" not in str(raised.value)  # not every caller has one
    with pytest.raises(SolveError, match=r"residuals of .* columns hold .* states or gradients"):
        least_squares(K, R * torch.nan, Preserved.of(C))
    with pytest.raises(SolveError, match="not finite"):
        Preserved.of(C * torch.nan)
    with pytest.raises(ValueError, match="equality"):
        least_squares(K, R, Preserved.of(C), damping=0.1)


def test_many_keys_leave_no_more_factors_than_outputs() -> None:
    keys, residuals = torch.randn(6, 40).double(), torch.randn(4, 40).double()
    solution = least_squares(keys, residuals, Preserved.of(ridge=0.5))
    assert solution.left.shape == (4, 4)
    expected = residuals @ keys.mT @ torch.linalg.inv(keys @ keys.mT + 0.5 * torch.eye(6))
    torch.testing.assert_close(solution.left @ solution.right, expected)
    rest = residuals - expected @ keys
    assert solution.unwritten == pytest.approx(float(rest.norm() / residuals.norm()))
