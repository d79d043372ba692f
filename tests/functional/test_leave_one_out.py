"""Leave-one-out columns equal a solve without the keys, for every mode of the solver."""

import pytest
import torch

from lightning_edit.functional.leave_one_out import left_out_columns
from lightning_edit.functional.solve import Preserved, SolveMode, least_squares


@pytest.mark.parametrize(
    ("mode", "damping"), [("ridge", None), ("equality", 0.0), ("equality", 0.3)]
)
@pytest.mark.parametrize("owners", [(0, 1, 2, 3, 4), (0, 0, 1, 2, 2), (1, 0, 1, 0, 2)])
def test_what_a_solve_without_a_group_loses(
    mode: SolveMode, damping: float | None, owners: tuple[int, ...]
) -> None:
    draw = torch.Generator().manual_seed(5)
    keys, residuals, text = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((12, 5), (7, 5), (12, 40))
    )
    preserved = Preserved.of(text @ text.mT, 0.2)
    whole = least_squares(keys, residuals, preserved, mode, damping)
    assert whole.gram_inverse is not None
    columns = left_out_columns(residuals, whole.gram_inverse, owners)
    for owner in set(owners):
        group = [n for n, one in enumerate(owners) if one == owner]
        kept = [n for n in range(5) if n not in group]
        less = least_squares(keys[:, kept], residuals[:, kept], preserved, mode, damping)
        lost = whole.left @ whole.right - less.left @ less.right
        found = columns[:, group] @ whole.right[group]
        torch.testing.assert_close(found, lost, rtol=1e-10, atol=1e-12)
        # It is no accident: the request's own columns are something else.
        own = residuals[:, group] @ whole.right[group]
        assert (own - lost).norm() > 1e-3 * lost.norm()
