"""Second moments of some modules' inputs, and the file that holds them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from lightning_edit.exceptions import DataError, StatisticsNotFoundError
from lightning_edit.functional.nullspace import Spectrum
from lightning_edit.storage.tensors import write_tensors

_FORMAT = "lightning-edit-statistics/1"

#: Endings of the names under which a module's spectrum is stored.
_VALUES, _VECTORS = "@eigenvalues", "@eigenvectors"


@dataclass(frozen=True)
class Moments:
    """Second moments of some modules' inputs.

    Args:
        matrices: By dotted module name, (f, f), float32.
        tokens: Tokens that each is the mean over.
        model: Hash of the model's weights.
        corpus: Hash of the texts, in tokens.
        specials: Token ids that the tokenizer adds to every text, such as BOS.
        intensities: By module, how far the moments of few tokens were shrunk; empty: not at all.
        target: What they were shrunk towards.
        spectra: By module, eigenvalues and eigenvectors, where they were asked for.
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
        """Return those of one module."""
        return replace(
            self,
            matrices={module: self.matrices[module]},
            intensities={key: value for key, value in self.intensities.items() if key == module},
            spectra={key: value for key, value in self.spectra.items() if key == module},
        )

    def decomposed(self) -> "Moments":
        """Return them with the spectra of all, from which null spaces are read off.

        Raises:
            SolveError: If a moment is not finite.
        """
        return replace(self, spectra={k: Spectrum.of(m, k) for k, m in self.matrices.items()})

    def save(self, path: Path) -> None:
        """Write the moments as one safetensors file, complete or not at all."""
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
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            modules: Names to read; all when left out.
            with_spectra: Whether to read the spectra too, where there are some.

        Raises:
            StatisticsNotFoundError: If there is no such file, or it lacks a module.
            DataError: If it is not a statistics file.
        """
        if not path.is_file():
            raise StatisticsNotFoundError(
                f"{path}: no such file; collect statistics with "
                f"`lightning-edit stats --lm MODEL --text FILE --out {path}`"
            )
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
