"""Per-sample gradients of linear layers: exact factors, or random projections of fixed size.

A sample is a training text or a fact. Axis names: ``n`` -- samples; ``q`` -- other samples; ``b``
-- rows of a pass; ``t`` -- positions; ``s`` -- tokens of all samples; ``p`` -- projected gradient.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.analysis.training_data.encoding import LossRows
from lightning_edit.functional.influence import factor_products, factor_squared_norms
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.token_factors import token_factors

Factors = tuple[Tensor, Tensor, Tensor]
"""Layer inputs (s, d_in), gradients at the layer's outputs (s, d_out), and the sample of each token
(s,), in rising order; layers differ in their widths and, of two stacks, in their tokens."""


class Gradients(ABC):
    """Gradients of the loss of ``n`` samples with respect to one parameter subset."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of samples."""

    @abstractmethod
    def products(self, other: "Gradients") -> Float[Tensor, "n q"]:
        """Return the products with the gradients of other samples, in float64 on the CPU.

        Args:
            other: Gradients of the same kind and subset.
        """

    @abstractmethod
    def norms(self) -> Float[Tensor, " n"]:
        """Return the norm of each sample's gradient over the whole subset, in float64."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that :meth:`of_tensors` makes the gradients from again."""

    @classmethod
    @abstractmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Gradients":
        """Make the gradients from what :meth:`tensors` returned.

        Args:
            tensors: The tensors, by name.
        """


@dataclass(frozen=True)
class FactoredGradients(Gradients):
    """Exact gradients as factors: a token takes ``d_in + d_out`` numbers a layer.

    Args:
        samples: Number of samples.
        factors: Factors, by module name.
    """

    samples: int
    factors: Mapping[str, Factors]

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.samples

    def products(self, other: Gradients) -> Float[Tensor, "n q"]:
        """Return the products with the gradients of other samples; see the base class."""
        assert isinstance(other, FactoredGradients)
        found = torch.zeros(self.samples, other.samples, dtype=torch.float64)
        for name, (u, d, owner) in self.factors.items():
            v, e, whose = other.factors[name]
            found += factor_products((u, d), owner, self.samples, (v, e), whose, other.samples)
        return found

    def norms(self) -> Float[Tensor, " n"]:
        """Return the norm of each sample's gradient; see the base class."""
        squares = torch.zeros(self.samples, dtype=torch.float64)
        for u, d, owner in self.factors.values():
            squares += factor_squared_norms(u, d, owner, self.samples)
        return squares.clamp_min(0).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """Return the factors, by module and side."""
        found = {"samples": torch.tensor(self.samples)}
        for name, parts in self.factors.items():
            found |= {f"{name}@{number}": part for number, part in enumerate(parts)}
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "FactoredGradients":
        """Make the gradients from their tensors; see the base class."""
        names = sorted(key.removesuffix("@0") for key in tensors if key.endswith("@0"))
        factors = {
            name: (tensors[f"{name}@0"], tensors[f"{name}@1"], tensors[f"{name}@2"])
            for name in names
        }
        return cls(int(tensors["samples"]), factors)


@dataclass(frozen=True)
class ProjectedGradients(Gradients):
    """Gradients under a random projection: a sample takes at most ``size**2`` numbers a layer.

    Args:
        values: The projected gradients.
    """

    values: Float[Tensor, "n p"]

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.values)

    def products(self, other: Gradients) -> Float[Tensor, "n q"]:
        """Return the products with the gradients of other samples; see the base class."""
        assert isinstance(other, ProjectedGradients)
        return self.values.double() @ other.values.double().mT

    def norms(self) -> Float[Tensor, " n"]:
        """Return the norm of each sample's projected gradient; see the base class."""
        norms: Tensor = torch.linalg.vector_norm(self.values.double(), dim=1)
        return norms

    def tensors(self) -> dict[str, Tensor]:
        """Return the projected gradients."""
        return {"projected": self.values}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "ProjectedGradients":
        """Make the gradients from their tensors; see the base class."""
        return cls(tensors["projected"])


class Projection:
    r"""Random projection of both sides of a gradient, :math:`P (\sum_i \delta_i u_i^\top) Q^\top`.

    Gaussian matrices keep products of gradients in expectation (Johnson and Lindenstrauss); with
    one for each side no gradient is ever formed (LoGra, arXiv 2405.13954).

    Args:
        size: Rows of P and of Q; a side that is not wider stays as it is.
        seed: Seed of the matrices, which are the same at every checkpoint.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._known: dict[tuple[str, int], Tensor | None] = {}

    def side(self, name: str, values: Float[Tensor, "b t d"]) -> Float[Tensor, "b t k"]:
        """Project one factor.

        Args:
            name: Name of the module and of the side.
            values: The factor.
        """
        width = values.shape[-1]
        if (name, width) not in self._known:
            self._known[name, width] = self._matrix(name, width)
        matrix = self._known[name, width]
        return values if matrix is None else values @ matrix.to(values.device, values.dtype)

    def _matrix(self, name: str, width: int) -> Tensor | None:
        if width <= self.size:
            return None
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn = torch.randn(width, self.size, generator=generator, dtype=torch.float64)
        return drawn.div(self.size**0.5)


def sample_gradients(
    model: Any,
    samples: Sequence[LossRows],
    modules: Sequence[str],
    rows_per_pass: int,
    projection: Projection | None = None,
) -> Gradients:
    """Compute every sample's own gradient, as in a batch of one.

    Args:
        model: The language model, in evaluation mode; its weights may be frozen.
        samples: Losses of the samples.
        modules: Dotted names of the linear layers whose weights' gradients are taken.
        rows_per_pass: Most rows in a pass; bounds memory.
        projection: Makes a gradient's size fixed; ``None``: exact factors.
    """
    passes = list(_passes(model, samples, modules, rows_per_pass))
    if projection is None:
        return FactoredGradients(len(samples), {one: _joined(passes, one) for one in modules})
    parts = []
    for name in modules:
        added: Tensor | None = None
        for factors, owners in passes:
            inputs, gradients = factors[name]
            left = projection.side(f"{name}/out", gradients)
            right = projection.side(f"{name}/in", inputs)
            rows = torch.einsum("bto,bti->boi", left, right).flatten(1).cpu()
            if added is None:
                added = rows.new_zeros(len(samples), rows.shape[1])
            added.index_add_(0, owners, rows)
        if added is not None:
            parts.append(added)
    return ProjectedGradients(torch.cat(parts, dim=1))


#: Factors of a batch of rows by module, and the sample of each row; passes differ in their shapes.
_Pass = tuple[dict[str, tuple[Tensor, Tensor]], Tensor]


def _passes(
    model: Any, samples: Sequence[LossRows], modules: Sequence[str], rows_per_pass: int
) -> Iterator[_Pass]:
    """Yield the factors of batches of rows, with the sample of each row."""
    rows = [
        (number, row, sign)
        for number, sample in enumerate(samples)
        for row, sign in zip(sample.rows, sample.signs, strict=True)
    ]
    lengths = [len(prompt) + len(answer) for _, (prompt, answer), _ in rows]
    device = model.get_input_embeddings().weight.device
    for batch in length_sorted(lengths, rows_per_pass):
        chosen = [rows[one] for one in batch]
        _, factors = token_factors(model, [row for _, row, _ in chosen], modules, device, each=True)
        signs = torch.tensor([sign for *_, sign in chosen])
        yield (
            {name: (_widened(u), _signed(_widened(d), signs)) for name, (u, d) in factors.items()},
            torch.tensor([number for number, *_ in chosen]),
        )


def _widened(values: Tensor) -> Tensor:
    """Return values in at least single precision, in which products do not overflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _signed(gradients: Float[Tensor, "b t d"], signs: Float[Tensor, " b"]) -> Tensor:
    return gradients * signs.to(gradients.device, gradients.dtype)[:, None, None]


def _joined(passes: Sequence[_Pass], name: str) -> Factors:
    """Join the factors of several passes, without padding, in the order of the samples."""
    inputs, gradients, owners = [], [], []
    for factors, of_row in passes:
        u, d = (one.cpu() for one in factors[name])
        # The gradient is exactly zero at padding, and wherever the loss does not reach.
        there = d.ne(0).any(-1)
        inputs.append(u[there])
        gradients.append(d[there])
        owners.append(of_row[:, None].expand(there.shape)[there])
    order = torch.cat(owners).argsort(stable=True)
    return torch.cat(inputs)[order], torch.cat(gradients)[order], torch.cat(owners)[order]
