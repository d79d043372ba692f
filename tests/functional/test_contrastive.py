"""CKA against the authors' assessment scripts."""

import torch

from lightning_edit.functional.contrastive import contrastive_score
from tests.editors.golden import golden


def test_scores_are_the_authors() -> None:
    stored = golden("CALINET/cka").tensors
    close = {"rtol": 2e-4, "atol": 0.0}
    plain = contrastive_score(stored["P_true"], stored["P_false_each"])
    torch.testing.assert_close(plain, stored["CKA"], **close)
    smoothed = contrastive_score(stored["P_true"], stored["P_false_each"], 0.001)
    torch.testing.assert_close(smoothed, stored["score_reader"], **close)
    assert (plain < 1).any()
    assert (plain > 1).any()
