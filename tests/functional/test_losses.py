"""What a search reads of a pass, and its gradient, against autograd's own."""

import pytest
import torch

from lightning_edit.functional.losses import log_probs

MANY = torch.float64


def _logits(lines: int) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(lines, 7, dtype=MANY, requires_grad=True)


@pytest.mark.parametrize("others", [0, 1, 4])
@pytest.mark.parametrize("targets", [[], [2], [6, 0, 6]])
def test_log_probs_and_their_gradient(targets: list[int], others: int) -> None:
    wanted = torch.tensor(targets, dtype=torch.long)
    logits = _logits(len(targets) + others)
    chosen, rest = log_probs(logits, wanted)
    plain = torch.log_softmax(logits, dim=1)
    assert chosen.shape == (len(targets),)
    assert rest.shape == (others, 7)
    torch.testing.assert_close(chosen, plain[range(len(targets)), wanted])
    torch.testing.assert_close(rest, plain[len(targets) :])
    assert torch.autograd.gradcheck(log_probs, (logits, wanted))


def test_what_one_does_not_use_gets_no_gradient() -> None:
    logits = _logits(3)
    chosen, _ = log_probs(logits, torch.tensor([1, 4]))
    (gradient,) = torch.autograd.grad(chosen.sum(), logits)
    assert gradient[:2].abs().min() > 0
    assert not gradient[2].any()


def test_targets_that_do_not_count_are_refused() -> None:
    with pytest.raises((RuntimeError, IndexError)):
        log_probs(_logits(1), torch.tensor([1, 2]))
