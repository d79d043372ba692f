"""Causal tracing arithmetic: Meng et al., 2022, arXiv 2202.05262, section 2.

Axis names: ``s`` -- noise samples; ``t`` -- tokens; ``d`` -- hidden width; ``l`` -- layers.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def noise(samples: int, tokens: int, width: int, scale: float, seed: int) -> Float[Tensor, "s t d"]:
    """Draw Gaussian noise for the embeddings of a subject's tokens.

    Args:
        samples: Corrupted runs (10 in the authors' code).
        tokens: Tokens of the subject.
        width: Width of an embedding.
        scale: Standard deviation; the paper takes three times that of the embeddings (section 2.1).
        seed: Seed; the same on every machine, as the noise is drawn on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, tokens, width, generator=generator, dtype=torch.float64) * scale


def window(layer: int, width: int, num_blocks: int) -> range:
    """Return the window of blocks around a layer, cut at both ends of the model.

    Args:
        layer: Middle of the window; with an even width the later of the two.
        width: Blocks in a whole window.
        num_blocks: Blocks of the model.
    """
    first = layer - width // 2
    return range(max(0, first), min(num_blocks, first + width))


def indirect_effect(
    restored: Float[Tensor, "t l"], corrupted: Float[Tensor, ""]
) -> Float[Tensor, "t l"]:
    """Return the indirect effect: the answer's probability regained by restoring one state.

    IE = P(answer | corrupted, one clean state) - P(answer | corrupted), both averaged over noise.

    Args:
        restored: Probability of the answer by restored token and layer.
        corrupted: Probability of the answer when nothing is restored.
    """
    return restored - corrupted
