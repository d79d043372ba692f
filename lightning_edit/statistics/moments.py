"""Second moments E[k kᵀ] (uncentred covariance) of module inputs, and their file."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_edit.exceptions import DataError, LightningEditError, StatisticsNotFoundError
from lightning_edit.functional.nullspace import Spectrum
from lightning_edit.storage.tensors import write_tensors

_FORMAT = "lightning-edit-statistics/1"

#: Suffixes of the tensor names of a module's spectrum.
_VALUES, _VECTORS = "@eigenvalues", "@eigenvectors"


@dataclass(frozen=True)
class Moments:
    """Second moments E[k kᵀ] of module inputs (keys), with the hashes of model and corpus.

    Args:
        matrices: Moments by dotted module name, (f, f), float32.
        tokens: Number of tokens that each is the mean over.
        model: Hash of the model's weights.
        corpus: Hash of the tokens of the texts.
        specials: Token ids that the tokenizer adds to every text, such as BOS.
        intensities: Shrinkage intensity by module; empty: no shrinkage.
        target: Shrinkage target.
        spectra: Eigenvalues and eigenvectors by module, if computed.
    """

    matrices: Mapping[str, Float[Tensor, "f f"]]
    tokens: int
    model: str
    corpus: str
    specials: tuple[int, ...] = ()
    intensities: Mapping[str, float] = field(default_factory=dict)
    target: str = ""
    spectra: Mapping[str, Spectrum] = field(default_factory=dict)

    def only(self, module: str) -> "Moments":
        """Return the moments of one module only."""
        return replace(
            self,
            matrices={module: self.matrices[module]},
            intensities={key: value for key, value in self.intensities.items() if key == module},
            spectra={key: value for key, value in self.spectra.items() if key == module},
        )

    def decompose(self) -> "Moments":
        """Add the eigendecomposition of every module's moments, for null spaces.

        Raises:
            SolveError: If a moment is not finite.
        """
        return replace(self, spectra={k: Spectrum.of(m, k) for k, m in self.matrices.items()})

    def save(self, path: Path) -> None:
        """Write the moments to one safetensors file, atomically."""
        header = {
            "format": _FORMAT,
            "tokens": str(self.tokens),
            "model": self.model,
            "corpus": self.corpus,
            "specials": " ".join(map(str, self.specials)),
            "intensities": json.dumps(dict(self.intensities)),
            "target": self.target,
        }
        tensors = dict(self.matrices)
        for name, spectrum in self.spectra.items():
            tensors[name + _VALUES], tensors[name + _VECTORS] = spectrum.values, spectrum.vectors
        write_tensors(path, tensors, header)

    @classmethod
    def load(
        cls, path: Path, modules: Iterable[str] | None = None, with_spectra: bool = False
    ) -> "Moments":
        """Load moments from a file written by :meth:`save`.

        Args:
            path: The file.
            modules: Names of the modules to load; ``None``: all.
            with_spectra: Whether to load stored spectra too.

        Raises:
            StatisticsNotFoundError: If the file or a module in it is missing.
            DataError: If it is not a statistics file, is damaged, or not finite.
        """
        if not path.is_file():
            raise StatisticsNotFoundError(
                f"{path}: no such file; collect statistics with "
                f"`lightning-edit stats --lm MODEL --text FILE --out {path}`"
            )
        try:
            return cls._read(path, modules, with_spectra)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, LightningEditError):
                raise
            raise DataError(
                f"{path} is damaged, or no statistics file ({type(error).__name__}); delete it and "
                "collect the statistics again with `lightning-edit stats`"
            ) from error

    @classmethod
    def _read(cls, path: Path, modules: Iterable[str] | None, with_spectra: bool) -> "Moments":
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise DataError(
                    f"{path}: expected format {_FORMAT}, got {header.get('format', 'none')}; "
                    "make the file with `lightning-edit stats`"
                )
            stored = set(file.keys())
            known = sorted(key for key in stored if not key.endswith((_VALUES, _VECTORS)))
            names = known if modules is None else list(modules)
            if missing := sorted(set(names) - stored):
                raise StatisticsNotFoundError(
                    f"{path}: has statistics of {', '.join(known)}, not of {missing[0]}; "
                    "run `lightning-edit stats` with that layer in --layers"
                )
            matrices = {name: file.get_tensor(name) for name in names}
            spectra = {
                name: Spectrum(file.get_tensor(name + _VALUES), file.get_tensor(name + _VECTORS))
                for name in (names if with_spectra else ())
                if name + _VALUES in stored
            }
        for name, matrix in matrices.items():
            if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ValueError(f"{name} is no square matrix")
            if not bool(torch.isfinite(matrix).all()):
                raise DataError(
                    f"{path}: the statistics of {name} are not finite; check the text and the "
                    "model's dtype, and collect them again with `lightning-edit stats`"
                )
        return cls(
            matrices,
            int(header["tokens"]),
            header["model"],
            header["corpus"],
            tuple(int(number) for number in header.get("specials", "").split()),
            json.loads(header.get("intensities", "{}")),
            header.get("target", ""),
            spectra,
        )
