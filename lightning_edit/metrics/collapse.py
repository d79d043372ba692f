"""Model-collapse metrics: perplexity and n-gram entropy. Definitions: ``docs/metrics.md``.

Axis names: ``s`` -- the fixed texts; ``n`` -- texts of one update.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.functional.entropy import perplexity, weighted_entropy


class Perplexity(Metric):
    """Perplexity on fixed texts: token-weighted, median, mean and clipped mean over texts.

    ``compute`` returns ``perplexity`` (e to the mean over all tokens), ``perplexity_median``,
    ``perplexity_clipped`` (mean over texts of the perplexity of each, ``clip`` at most) and
    ``perplexity_mean`` (the same without clipping: ME-PPL of arXiv 2402.09656, which a few texts
    can dominate). The states have one entry per text, zero until it is scored, so that they are
    sums and the median is exact: each process may score any share of the texts, even none.

    Args:
        texts: Number of texts.
        clip: Maximum perplexity of one text in the clipped mean. At 1000 the authors of ME-PPL
            call a model collapsed.

    Example:
        >>> metric = Perplexity(texts=2)
        >>> metric.update(torch.tensor([0, 1]), torch.tensor([0.0, 6.0]), torch.tensor([3, 3]))
        >>> round(metric.compute()["perplexity"].item(), 4)  # e to the power of 6 / 6
        2.7183
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    nll: Tensor
    tokens: Tensor

    def __init__(self, texts: int, clip: float = 1000.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clip = clip
        self.add_state("nll", torch.zeros(texts, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(texts, dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self, numbers: Int[Tensor, " n"], nll: Float[Tensor, " n"], tokens: Int[Tensor, " n"]
    ) -> None:
        """Add negative log-likelihoods of texts; a rank without a share may add none.

        Args:
            numbers: Indices of the texts.
            nll: Sum of each text's negative log-probabilities, in nats.
            tokens: Number of predicted tokens.
        """
        device = self.nll.device
        self.nll.index_add_(0, numbers.to(device), nll.to(device, torch.float64))
        self.tokens.index_add_(0, numbers.to(device), tokens.to(device))

    def compute(self) -> dict[str, Tensor]:
        """Compute perplexities by name; empty if no text was scored."""
        seen = self.tokens > 0
        if not bool(seen.any()):
            return {}
        nll, tokens = self.nll[seen], self.tokens[seen]
        pairs = zip(nll.tolist(), tokens.tolist(), strict=True)
        each = nll.new_tensor([perplexity(*pair) for pair in pairs])
        return {
            "perplexity": nll.new_tensor(perplexity(nll.sum().item(), int(tokens.sum()))),
            "perplexity_median": each.quantile(0.5),
            "perplexity_clipped": each.clamp(max=self.clip).mean(),
            "perplexity_mean": each.mean(),
        }


class NgramEntropy(Metric):
    """Mean entropy of the bigrams and trigrams of generated texts, in bits.

    GE of COUNTERFACT (arXiv 2202.05262): low for a model that repeats itself. Words are runs of
    letters and digits, and single punctuation marks; the authors use a tokenizer of nltk.

    Example:
        >>> metric = NgramEntropy()
        >>> metric.update(["a b a b a"])
        >>> round(metric.compute()["ngram_entropy"].item(), 3)
        0.946
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    total: Tensor
    texts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("texts", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, texts: Sequence[str]) -> None:
        """Add generated texts; a rank without a share may add none.

        Args:
            texts: Texts.
        """
        for text in texts:
            self.total += weighted_entropy(text)
            self.texts += 1

    def compute(self) -> dict[str, Tensor]:
        """Compute the mean entropy over texts, by name; empty if there was none."""
        return {"ngram_entropy": self.total / self.texts} if self.texts > 0 else {}
