"""Key overlap of edits and facts."""

import torch

from lightning_edit.functional.ripple import key_overlap
from lightning_edit.functional.solve import Preserved, least_squares


def test_key_overlap_is_what_an_edit_by_rome_writes_at_the_key() -> None:
    draw = torch.Generator().manual_seed(2)
    edits, facts, text = (torch.randn(n, 12, generator=draw).double() for n in (2, 5, 60))
    preserved = Preserved.of(text.mT @ text)
    found = key_overlap(edits, facts, preserved)
    for number, key in enumerate(edits):
        one = least_squares(key[:, None], torch.ones(3, 1), preserved, "equality")
        written = (one.left @ one.right @ facts.mT)[0].abs()
        torch.testing.assert_close(found[number], written)
    torch.testing.assert_close(
        key_overlap(edits, edits, preserved).diagonal(), torch.ones(2).double()
    )
