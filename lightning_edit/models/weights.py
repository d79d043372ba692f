"""Weight access in language models: read, write, hash, whatever layer holds the weight.

A matrix always acts as ``y = W k`` with W of shape (d_out, d_in); layers that store it transposed
(transformers' ``Conv1D``) are transposed on read and write.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_edit.exceptions import ArchitectureError, NotFiniteError


@dataclass(frozen=True)
class Weight:
    """One weight of a model, in the orientation (d_out, d_in) that the formulas use.

    Args:
        name: Dotted name of the parameter, as in ``model.named_parameters()``.
        parameter: The parameter itself.
        transposed: Whether it is stored as (d_in, d_out).
        tied_to: Other names under which the same values are used; a write changes all of them.
    """

    name: str
    parameter: nn.Parameter
    transposed: bool = False
    tied_to: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (d_out, d_in) of a matrix, (d,) of a bias or a scale."""
        shape = tuple(self.parameter.shape)
        return shape[::-1] if self.transposed else shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's parameter."""
        return self.parameter.dtype

    @property
    def device(self) -> torch.device:
        """Device of the model's parameter."""
        return self.parameter.device

    def raw(self) -> nn.Parameter:
        """Return the model's own parameter, e.g. to take gradients."""
        return self.parameter

    def read(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Read a detached copy of the weight, (d_out, d_in) for a matrix.

        Args:
            dtype: Dtype of the copy; solves are done in float64.
        """
        # A DTensor weight would be gathered here with `full_tensor()`.
        values = self.parameter.detach().to(dtype, copy=True)
        return values.mT.contiguous() if self.transposed else values

    def write(self, value: Tensor) -> None:
        """Overwrite the weight in place, so that compiled models and tied references see it.

        Args:
            value: New values in the orientation of :attr:`shape`; cast to the weight's type once.

        Raises:
            ValueError: If the shape differs.
            NotFiniteError: If a value is not finite in the weight's type. The weight is unchanged.
        """
        if tuple(value.shape) != self.shape:
            raise ValueError(
                f"{self.name} has shape {self.shape} as (d_out, d_in), got {tuple(value.shape)}; "
                "give the value in that orientation"
            )
        cast = value.detach().to(self.device, self.dtype)
        if not bool(torch.isfinite(cast).all()):
            raise NotFiniteError(
                f"a value for {self.name} is not finite in {self.dtype}; the weight was left as it "
                "was. Check the edit's learning rate or damping, or load the model in a wider dtype"
            )
        with torch.no_grad():
            # A DTensor weight would take its own shard here with `distribute_tensor`.
            self.parameter.copy_(cast.mT if self.transposed else cast)


def weight(model: nn.Module, parameter_name: str) -> Weight:
    """Look up one weight of a model by its dotted parameter name.

    Args:
        model: Any model; its module tree is read, nothing is changed.
        parameter_name: For example ``transformer.h.0.mlp.c_proj.weight``.

    Raises:
        ArchitectureError: If there is no such parameter, or if it is quantised.
    """
    owner_name, _, leaf = parameter_name.rpartition(".")
    try:
        owner = model.get_submodule(owner_name)
        parameter = model.get_parameter(parameter_name)
    except AttributeError as error:
        raise ArchitectureError(
            f"{type(model).__name__} has no parameter {parameter_name!r} ({error}); "
            "`lightning-edit doctor MODEL` lists the weights that can be edited"
        ) from error
    # One-byte types (int8, packed 4-bit, float8) need scales that are stored elsewhere.
    if not parameter.is_floating_point() or parameter.element_size() < 2:
        raise ArchitectureError(
            f"{parameter_name} is stored as {parameter.dtype}, which is quantised and cannot be "
            "edited; load the model unquantised with dtype float32, bfloat16 or float16"
        )
    transposed = isinstance(owner, Conv1D) and leaf == "weight"
    return Weight(parameter_name, parameter, transposed, _tied(model, parameter_name, parameter))


def _tied(model: nn.Module, name: str, parameter: nn.Parameter) -> tuple[str, ...]:
    """Return the names of tied weights: other parameters that share the same memory."""
    address = 0 if parameter.is_meta else parameter.data_ptr()
    return tuple(
        other_name
        for other_name, other in model.named_parameters(remove_duplicate=False)
        if other_name != name
        and (other is parameter or (address != 0 and other.data_ptr() == address))
    )


def weights_hash(model: nn.Module, names: Iterable[str] | None = None) -> str:
    """Hash names, types, shapes and bytes of parameters; equal hashes mean bit-identical weights.

    Args:
        model: The model whose weights are hashed.
        names: Parameters to hash; all of them (tied ones once) when left out.

    Returns:
        Hexadecimal SHA-256, independent of the order of ``names``, device and gradients.

    Raises:
        ArchitectureError: If a name is not a parameter of the model.
    """
    parameters = dict(model.named_parameters())
    if names is not None:
        every = dict(model.named_parameters(remove_duplicate=False))
        wanted = set(names)
        if missing := sorted(wanted - every.keys()):
            raise ArchitectureError(
                f"{type(model).__name__} has no parameter {missing[0]!r} to hash; "
                "give names as in model.named_parameters()"
            )
        parameters = {name: every[name] for name in wanted}
    digest = hashlib.sha256()
    for name in sorted(parameters):
        values = parameters[name].detach()
        digest.update(f"{name}|{values.dtype}|{tuple(values.shape)}|".encode())
        # NumPy has no bfloat16, so every dtype is hashed as bytes.
        digest.update(values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
