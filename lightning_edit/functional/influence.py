r"""Training data attribution by gradient products: TracIn and DDA, from per-sample factors.

The gradient of a linear layer's weight on one sample is :math:`\sum_i \delta_i u_i^\top`, with
:math:`u_i` the layer's input and :math:`\delta_i` the gradient at its output at token ``i``. The
product of two such gradients is :math:`\sum_{ij} (\delta_i \cdot \delta'_j)(u_i \cdot u'_j)`, so
that neither has to be formed.

Axis names: ``c`` -- checkpoints; ``n`` -- training texts; ``q`` -- queries (facts); ``s``, ``z`` --
tokens of all texts and of all queries, one after the other.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Entries of a matrix of token products that is held at once.
_ENTRIES = 1 << 22


def factor_products(
    text: tuple[Float[Tensor, "s d_in"], Float[Tensor, "s d_out"]],
    text_of: Int[Tensor, " s"],
    texts: int,
    query: tuple[Float[Tensor, "z d_in"], Float[Tensor, "z d_out"]],
    query_of: Int[Tensor, " z"],
    queries: int,
) -> Float[Tensor, "n q"]:
    """Return the products of per-sample weight gradients that are given as factors.

    Args:
        text: Layer inputs and output gradients at the tokens of the training texts.
        text_of: Training text of each token.
        texts: Number of training texts.
        query: The same at the tokens of the queries; bounded memory holds whatever their number.
        query_of: Query of each token.
        queries: Number of queries.

    Example:
        >>> u, d = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
        >>> one = torch.tensor([0])
        >>> factor_products((u, d), one, 1, (u, 2 * d), one, 1)
        tensor([[90.]])
    """
    found = text[0].new_zeros(queries, texts)
    step = max(1, _ENTRIES // max(1, len(text_of)))
    for begin in range(0, len(query_of), step):
        part = slice(begin, begin + step)
        both = (query[0][part] @ text[0].mT) * (query[1][part] @ text[1].mT)
        by_text = both.new_zeros(len(both), texts).index_add_(1, text_of, both)
        found.index_add_(0, query_of[part], by_text)
    return found.mT


def factor_squared_norms(
    inputs: Float[Tensor, "s d_in"],
    gradients: Float[Tensor, "s d_out"],
    text_of: Int[Tensor, " s"],
    texts: int,
) -> Float[Tensor, " n"]:
    """Return the squared norm of each sample's weight gradient, from its factors.

    Args:
        inputs: Layer inputs at the tokens of the samples.
        gradients: Gradients at the layer's outputs.
        text_of: Sample of each token, in rising order.
        texts: Number of samples.
    """
    sizes = torch.bincount(text_of, minlength=texts).tolist()
    parts = zip(torch.split(inputs, sizes), torch.split(gradients, sizes), strict=True)
    return torch.stack([((u @ u.mT) * (d @ d.mT)).sum() for u, d in parts])


def cosines(
    products: Float[Tensor, "n q"],
    text_norms: Float[Tensor, " n"],
    query_norms: Float[Tensor, " q"],
) -> Float[Tensor, "n q"]:
    """Return cosines from products and norms; 0 where a gradient is zero, NaN where one is none.

    Args:
        products: Products of gradients.
        text_norms: Norms of the training texts' gradients.
        query_norms: Norms of the queries' gradients.
    """
    lengths = text_norms[:, None] * query_norms[None, :]
    return torch.where(lengths == 0, 0.0, products / lengths)


def dda_scores(
    products: Float[Tensor, "c n q"], base: Float[Tensor, "n q"] | None, beta: float
) -> Float[Tensor, "n q"]:
    r"""Return the scores of Debias and Denoise Attribution (arXiv 2410.01285), reconstructed.

    .. math:: \frac1N \sum_{c=1}^N \nabla f_{\theta_c} \cdot \nabla \ell_{\theta_c}
              - \beta \, \nabla f_{\theta_0} \cdot \nabla \ell_{\theta_0}

    The authors' scripts are empty files; this follows a review of the paper, which states both
    halves and not their combination. The sign is such that high scores say: training on this text
    lowered ``f``, the loss of the answer in question, and so caused the answer.

    Args:
        products: Gradient products at every epoch's checkpoint (denoise), or at one alone.
        base: The same at the model before fine-tuning (debias); ``None``: no debias.
        beta: Share of the base model's influence that is subtracted.

    Example:
        >>> dda_scores(torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[4.0]]), 0.25)
        tensor([[1.]])
    """
    mean = products.mean(0)
    return mean if base is None else mean - beta * base


def tracin_scores(
    products: Float[Tensor, "c n q"], learning_rates: Float[Tensor, " c"]
) -> Float[Tensor, "n q"]:
    """Return TracIn's scores (arXiv 2002.08484): products, weighted by learning rate, summed.

    Args:
        products: Gradient products at every checkpoint.
        learning_rates: Learning rate at each of them.
    """
    return torch.einsum("c,cnq->nq", learning_rates.to(products.dtype), products)
