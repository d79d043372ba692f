import pytest
import torch

from lightning_edit.functional.statistics import SecondMoment


def test_batches_of_any_size_give_the_same_moment() -> None:
    keys = torch.randn(101, 7, generator=torch.Generator().manual_seed(0))
    whole, parts = SecondMoment(7), SecondMoment(7)
    whole.update(keys)
    for part in keys.split(13):
        parts.update(part)
    expected = keys.double().mT @ keys.double() / 101
    torch.testing.assert_close(whole.compute(), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(parts.compute(), expected, rtol=1e-12, atol=0)


def test_sum_of_two_processes_is_the_moment_of_both() -> None:
    first, second = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(1))
    merged, one, other = SecondMoment(5), SecondMoment(5), SecondMoment(5)
    one.update(first)
    other.update(second[:11])
    merged.update(torch.cat([first, second[:11]]))
    one.total += other.total
    one.count += other.count
    torch.testing.assert_close(one.compute(), merged.compute())


def test_no_text_is_an_error() -> None:
    moment = SecondMoment(3)
    moment.update(torch.empty(0, 3))
    with pytest.raises(ValueError, match="no token"):
        moment.compute()
