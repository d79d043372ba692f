"""Delta of an edit: low-rank or dense weight updates, to apply, save, export and undo.

Axis names: ``d_out``/``d_in`` -- a weight acts as ``y = W k``; ``r`` -- rank of an update.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lightning_edit.edits.columns import expand, run_lengths
from lightning_edit.exceptions import LedgerError
from lightning_edit.models.weights import weight
from lightning_edit.storage.atomic import write_atomic
from lightning_edit.storage.content_hash import content_hash
from lightning_edit.storage.safetensors_files import to_safetensors

_FORMAT = "lightning-edit-delta/1"


@dataclass(frozen=True)
class LowRank:
    """Low-rank update of a matrix, stored as two factors ``left @ right``.

    Args:
        left: Factor of shape (d_out, r).
        right: Factor of shape (r, d_in).
    """

    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "r d_in"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", _own_contiguous(self.left))
        object.__setattr__(self, "right", _own_contiguous(self.right))

    @property
    def rank(self) -> int:
        """Number of columns of ``left``: an upper bound of the update's rank."""
        return self.left.shape[1]

    @property
    def numel(self) -> int:
        """Number of stored values."""
        return self.left.numel() + self.right.numel()

    def dense(
        self, dtype: torch.dtype = torch.float64, device: torch.device | None = None
    ) -> Float[Tensor, "d_out d_in"]:
        """Return the dense update: the product of the factors in ``dtype``.

        Args:
            dtype: Dtype of the product.
            device: Device of the product, since products round differently on other devices;
                ``None``: the device of the factors.
        """
        return self.left.to(device, dtype) @ self.right.to(device, dtype)

    def norm(self) -> float:
        """Frobenius norm, from the two r × r Gram matrices without forming the product."""
        left, right = self.left.double(), self.right.double()
        squared = ((left.mT @ left) * (right @ right.mT)).sum()
        return float(squared.clamp_min(0).sqrt())

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors of the update, for saving."""
        return {"left": self.left, "right": self.right}


@dataclass(frozen=True)
class Dense:
    """Dense update of a matrix (d_out, d_in) or a bias.

    Args:
        value: Values to add.
    """

    value: Float[Tensor, "..."]

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _own_contiguous(self.value))

    @property
    def rank(self) -> int:
        """Upper bound of the rank; 1 for a bias."""
        return min(self.value.shape) if self.value.ndim == 2 else 1

    @property
    def numel(self) -> int:
        """Number of stored values."""
        return self.value.numel()

    def dense(
        self, dtype: torch.dtype = torch.float64, device: torch.device | None = None
    ) -> Float[Tensor, "..."]:
        """Return the dense update in ``dtype``.

        Args:
            dtype: Dtype of the result.
            device: Device of the result; ``None``: the device of the update.
        """
        return self.value.to(device, dtype)

    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.value.double().norm())

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors of the update, for saving."""
        return {"value": self.value}


WeightUpdate = LowRank | Dense


@dataclass(frozen=True)
class Delta:
    """Delta of one commit: weight updates, run-time state, prompts and editor history.

    Args:
        request_ids: Ids of the requests it serves.
        weights: Updates by parameter name, matrices in (d_out, d_in) whatever the module stores.
        state: Tensors of an editor that acts at inference time (codebook entries, extra neurons,
            histories).
        prompts: Text to prepend to a prompt, by request, for in-context editors.
        info: Statistics of the search (loss, steps, residual), for the run's record.
        history: Tensors that the editor keeps of this edit while it is in force (keys of a
            least-squares history). They do not change the model, so exports omit them.
        columns: By name of a low-rank update that is a sum over requests, the request of each
            column: its index in ``request_ids``, or -1 for a column of none of them. Names that are
            missing have no such sum; so have updates that were replaced by others of another rank
            (``dataclasses.replace(delta, weights=...)``), whose columns are left out.

    Raises:
        ValueError: If ``columns`` names a request that is not there.

    Note:
        Tensors that are views or not row-major are copied, and a file keeps the order of their
        names, so that a delta in memory equals the same delta read from disk: sums and products of
        the two are bit-identical.
    """

    request_ids: tuple[str, ...]
    weights: Mapping[str, WeightUpdate] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fitting = {}
        for name, owners in self.columns.items():
            if not all(-1 <= one < len(self.request_ids) for one in owners):
                raise ValueError(
                    f"columns of {name!r}: expected the index of a request, or -1, for every column"
                    f" of a low-rank update, got {owners} for {self.request_ids}"
                )
            update = self.weights.get(name)
            if isinstance(update, LowRank) and update.rank == len(owners):
                fitting[name] = owners
        object.__setattr__(self, "columns", fitting)
        for name in ("state", "history"):
            tensors: dict[str, Tensor] = getattr(self, name)
            object.__setattr__(self, name, {key: _own_contiguous(v) for key, v in tensors.items()})

    @classmethod
    def between(
        cls,
        before: nn.Module | Mapping[str, Tensor] | str | Path,
        after: nn.Module | Mapping[str, Tensor] | str | Path,
        ids: str | Sequence[str] = "fine-tuning",
        max_rank: int = 256,
    ) -> "Delta":
        """Return the difference of two checkpoints: anybody's own fine-tuning as an edit.

        The difference can then be committed, scored, undone and exported like every edit. A matrix
        whose difference has low rank is kept as two factors; committing them gives the weights of
        ``after`` up to their rounding in float32 (what is left has a Frobenius norm of at most
        2⁻²³ of the weight's). Any other difference is kept whole, and committing it on ``before``
        gives ``after`` bit for bit. Embeddings, norms and biases are parameters like others.

        Example::

            before = {name: value.clone() for name, value in model.state_dict().items()}
            train(model)  # any training loop
            delta = Delta.between(before, model, ids="capitals")
            model.load_state_dict(before)
            edited = EditedModel.of(model, tokenizer).commit(delta)

        Args:
            before: The unedited weights: a model, a state dict, or the folder or hub name of a
                saved model, which is loaded in its own dtype.
            after: The weights with the edit, likewise; or the folder of a LoRA adapter that
                ``peft`` wrote, whose factors are taken as they are.
            ids: Ids of the edit's requests.
            max_rank: Highest rank that is kept as factors; 0: every difference is kept whole.

        Returns:
            The delta; empty if the two are equal.

        Raises:
            ArchitectureError: If names, shapes or ties of the two differ, weights are quantised, or
                ``after`` is stored in a narrower dtype, so that rounding would look like an edit.
            ConfigError: If both are state dicts, which do not say how layers store their weights,
                or an adapter is no plain LoRA.
            NotFiniteError: If a weight is not finite.
            ModelLoadError: If a folder holds no model.
        """
        # Forms deltas, so it cannot be imported before them.
        from lightning_edit.edits.between import weight_differences

        named = (ids,) if isinstance(ids, str) else tuple(ids)
        return cls(named, weight_differences(before, after, max_rank))

    @property
    def is_empty(self) -> bool:
        """Whether the delta has no weight update, state or prompt."""
        return not (self.weights or self.state or self.prompts)

    def norm(self) -> dict[str, float]:
        """Frobenius norm of every weight's update."""
        return {name: update.norm() for name, update in self.weights.items()}

    def rank(self) -> dict[str, int]:
        """Upper bound of every update's rank."""
        return {name: update.rank for name, update in self.weights.items()}

    def numel(self) -> int:
        """Number of stored values, without the editor's history."""
        parts = [update.numel for update in self.weights.values()]
        return sum(parts) + sum(tensor.numel() for tensor in self.state.values())

    def checksums(self) -> dict[str, str]:
        """SHA-256 of what each part does, to compare the deltas of several processes.

        The parts are weights by parameter name, and state, history and prompts by theirs.
        """
        found = {
            name: content_hash(update.tensors()) for name, update in sorted(self.weights.items())
        }
        for kind, named in (("state", self.state), ("history", self.history)):
            found |= {f"{kind} {name}": content_hash(value) for name, value in named.items()}
        return found | {f"prompt {name}": content_hash(text) for name, text in self.prompts.items()}

    def not_finite(self) -> list[str]:
        """Names of weights, state or history tensors with NaN or infinite entries."""
        bad = [
            name
            for name, update in self.weights.items()
            if not all(bool(torch.isfinite(part).all()) for part in update.tensors().values())
        ]
        others = {**self.state, **self.history}
        floating = {k: v for k, v in others.items() if v.is_floating_point()}
        return bad + [name for name, value in floating.items() if not torch.isfinite(value).all()]

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Apply the weight updates inside a ``with`` block, and restore the exact bits afterwards.

        Args:
            model: The language model.
        """
        handles = {name: weight(model, name) for name in self.weights}
        before = {name: handle.raw().detach().clone() for name, handle in handles.items()}
        try:
            for name, update in self.weights.items():
                handle = handles[name]
                handle.write(handle.read(torch.float64) + update.dense(device=handle.device))
            yield
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    handles[name].raw().copy_(value)

    def to_lora(self, max_rank: int | None = None) -> dict[str, tuple[Tensor, Tensor, float]]:
        """Convert every matrix update to LoRA factors ``B @ A``.

        Low-rank updates that fit are used unchanged; others are truncated by a singular value
        decomposition (SVD) in float64.

        Args:
            max_rank: Maximum rank; ``None``: the rank of the update.

        Returns:
            By parameter name: B of shape (d_out, r), A of shape (r, d_in), and the share of the
            squared norm that was kept (1.0: exact).

        Raises:
            LedgerError: If the delta changes a bias or run-time state, which LoRA cannot express.
        """
        biases = [name for name, update in self.weights.items() if update.dense().ndim != 2]
        if self.state or self.prompts or biases:
            raise LedgerError(
                "LoRA holds updates of matrices only, but this edit also changes "
                f"{biases or 'state used at run time'}; export it with --format delta or merged"
            )
        return {name: _lora_factors(update, max_rank) for name, update in self.weights.items()}

    def save(self, path: Path) -> None:
        """Save the delta as safetensors, atomically, with its description in the header.

        Args:
            path: File to write.

        Raises:
            OSError: If the disk write fails; an existing file is unchanged.
        """
        tensors = {
            f"weights/{name}/{part}": value
            for name, update in self.weights.items()
            for part, value in update.tensors().items()
        }
        for kind, named in (("state", self.state), ("history", self.history)):
            tensors |= {f"{kind}/{name}": value for name, value in named.items()}
        header = {
            "format": _FORMAT,
            "request_ids": json.dumps(self.request_ids),
            "prompts": json.dumps(dict(self.prompts)),
            "info": json.dumps(dict(self.info)),
            "order": json.dumps([list(self.weights), list(self.state), list(self.history)]),
        }
        if self.columns:
            runs = {name: run_lengths(owners) for name, owners in self.columns.items()}
            header["columns"] = json.dumps(runs, separators=(",", ":"))
        write_atomic(path, to_safetensors(tensors, header))

    @classmethod
    def load(cls, path: Path, device: str | torch.device = "cpu") -> "Delta":
        """Load a delta file of :meth:`save`.

        Args:
            path: The file.
            device: Device of the tensors.

        Returns:
            The delta.

        Raises:
            LedgerError: If the file is not a delta.
        """
        if not path.is_file():  # a pipe would be waited for
            raise LedgerError(
                f"{path} cannot be read as a delta (no such file); give a file that lightning-edit "
                "wrote"
            )
        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                header = file.metadata() or {}
                names = file.keys()
                # A copy, since tensors in a file may begin at any memory offset.
                tensors = {name: file.get_tensor(name).clone() for name in names}
        except (OSError, SafetensorError) as error:
            raise LedgerError(
                f"{path} cannot be read as a delta ({error}); give a file that lightning-edit wrote"
            ) from error
        if header.get("format") != _FORMAT:
            found = header.get("format", "none")
            raise LedgerError(f"{path}: expected format {_FORMAT}, got {found}; not a delta file")
        try:
            return cls._of_file(header, tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LedgerError(
                f"{path}: its header does not describe its tensors ({error!r}); the file is "
                "damaged, restore it"
            ) from error

    @classmethod
    def _of_file(cls, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> "Delta":
        weights: dict[str, WeightUpdate] = {}
        written = sorted({key.split("/")[1] for key in tensors if key.startswith("weights/")})
        order = [
            written,
            *(sorted(_strip_prefix(kind, tensors)) for kind in ("state/", "history/")),
        ]
        if "order" in header:  # absent in files of older versions
            order = json.loads(header["order"])
        for name in order[0]:
            stem = f"weights/{name}"
            if f"{stem}/value" in tensors:
                weights[name] = Dense(tensors[f"{stem}/value"])
            else:
                weights[name] = LowRank(tensors[f"{stem}/left"], tensors[f"{stem}/right"])
        return cls(
            tuple(json.loads(header["request_ids"])),
            weights,
            {name: tensors[f"state/{name}"] for name in order[1]},
            json.loads(header["prompts"]),
            json.loads(header["info"]),
            {name: tensors[f"history/{name}"] for name in order[2]},
            # Absent in files of older versions, and where an update is no sum over requests.
            {name: expand(runs) for name, runs in json.loads(header.get("columns", "{}")).items()},
        )


def _own_contiguous(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor with its own memory; the tensor itself if it already is one.

    Vectorised kernels may round differently with another memory offset or layout.
    """
    own = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    # `is_contiguous` does not look at axes of length one, but products choose kernels by them.
    if own and tensor.stride() == torch.empty(tensor.shape, device="meta").stride():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors with a name prefix, and strip the prefix."""
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _lora_factors(update: WeightUpdate, max_rank: int | None) -> tuple[Tensor, Tensor, float]:
    if isinstance(update, LowRank) and (max_rank is None or update.rank <= max_rank):
        return update.left, update.right, 1.0
    if isinstance(update, LowRank):
        q_left, r_left = torch.linalg.qr(update.left.double())
        q_right, r_right = torch.linalg.qr(update.right.double().mT)
        U, S, Vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
        U, Vh = q_left @ U, Vh @ q_right.mT
    else:
        U, S, Vh = torch.linalg.svd(update.dense(), full_matrices=False)
    total = float((S**2).sum())
    # Singular values below this are float32 rounding error, not part of the edit.
    numerical = int((S[0] * 1e-7 < S).sum()) if total > 0 else 1
    rank = max(1, numerical if max_rank is None else min(max_rank, numerical))
    kept = float((S[:rank] ** 2).sum()) / total if total > 0 else 1.0
    return (U[:, :rank] * S[:rank]).float(), Vh[:rank].float(), kept
