"""The statistics stage: what a model's layers see in ordinary text, collected once and kept.

Editors that solve least squares weigh an edit against the second moments E[k kᵀ] of the edited
layers' inputs. They are stored under a key of the model's weights, so a changed model never gets
another one's statistics.
"""

import hashlib
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_edit import atlas
from lightning_edit.exceptions import DataError, StatisticsNotFoundError
from lightning_edit.functional.statistics import SecondMoment
from lightning_edit.models.hooks import Side, capture
from lightning_edit.models.loading import ATLAS
from lightning_edit.models.view import ModelView, resolve
from lightning_edit.models.weights import weight, weights_hash

_log = logging.getLogger(__name__)
_FORMAT = "lightning-edit-statistics/1"

#: Tokens that are enough for the embedded model: about twelve a dimension of its widest layer.
_EMBEDDED_TOKENS = 50_000


@dataclass(frozen=True)
class Moments:
    """Second moments of some modules' inputs.

    Args:
        matrices: By dotted module name, (f, f), float32.
        tokens: Tokens that each is the mean over.
        model: Hash of the model's weights.
        corpus: Hash of the texts.
    """

    matrices: Mapping[str, Float[Tensor, "f f"]]
    tokens: int
    model: str
    corpus: str

    def save(self, path: Path) -> None:
        """Write the moments as one safetensors file, complete or not at all."""
        header = {
            "format": _FORMAT,
            "tokens": str(self.tokens),
            "model": self.model,
            "corpus": self.corpus,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        os.close(handle)
        try:
            tensors = {key: value.contiguous().cpu() for key, value in self.matrices.items()}
            save_file(tensors, name, metadata=header)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, modules: Iterable[str] | None = None) -> "Moments":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            modules: Names to read; all when left out.

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
            names = list(file.keys()) if modules is None else list(modules)
            if missing := sorted(set(names) - set(file.keys())):
                raise StatisticsNotFoundError(
                    f"{path}: has statistics of {', '.join(file.keys())}, not of {missing[0]}; "
                    "run `lightning-edit stats` with that layer in --layers"
                )
            matrices = {name: file.get_tensor(name) for name in names}
        return cls(matrices, int(header["tokens"]), header["model"], header["corpus"])


def cache_folder() -> Path:
    """Return the folder under ``$LIGHTNING_EDIT_CACHE`` or ``~/.cache/lightning-edit``."""
    base = os.environ.get("LIGHTNING_EDIT_CACHE")
    return Path(base or Path.home() / ".cache" / "lightning-edit") / "statistics"


def store(moments: Moments) -> list[Path]:
    """Keep every module's moments in the cache, one file each."""
    paths = []
    for name, matrix in moments.matrices.items():
        stem = f"{name}-{matrix.dtype}-{moments.corpus[:12]}-{moments.tokens}".replace("torch.", "")
        path = cache_folder() / moments.model[:32] / f"{stem}.safetensors"
        Moments({name: matrix}, moments.tokens, moments.model, moments.corpus).save(path)
        paths.append(path)
    return paths


def find(model_hash: str, module: str) -> Path | None:
    """Return the cached file with most tokens for one module, or ``None``.

    Args:
        model_hash: :func:`~lightning_edit.models.weights.weights_hash` of the model.
        module: Dotted name of the module.
    """
    files = (cache_folder() / model_hash[:32]).glob(f"{module}-*.safetensors")
    return max(files, key=lambda path: int(path.stem.rpartition("-")[2]), default=None)


def moments_for(
    model: nn.Module, tokenizer: Any, layers: Sequence[int], source: str
) -> dict[int, Tensor | None]:
    """Return the second moments that an editor of some layers needs.

    Args:
        model: The unedited language model.
        tokenizer: Its tokenizer.
        layers: Block numbers.
        source: ``auto``: the cache, or for the embedded default model its own text, collected now.
            ``identity``: none, i.e. every direction of key space counts the same. Else a file.

    Returns:
        By block number; ``None`` stands for the identity.

    Raises:
        StatisticsNotFoundError: If they have not been collected.
    """
    view = resolve(model)
    if source == "identity":
        return dict.fromkeys(layers)
    modules = {layer: view.down_projection(layer) for layer in layers}
    if source != "auto":
        loaded = Moments.load(Path(source), modules.values())
        return {layer: loaded.matrices[name] for layer, name in modules.items()}
    model_hash = weights_hash(model)
    missing = [layer for layer, name in modules.items() if find(model_hash, name) is None]
    if missing and _is_embedded(model):
        _log.info("collecting key statistics of the embedded model (once)")
        texts = atlas.corpus()
        store(collect(model, tokenizer, texts, range(view.num_blocks), _EMBEDDED_TOKENS))
        missing = []
    if missing:
        raise _missing(model, view, missing)
    found: dict[int, Tensor | None] = {}
    for layer, name in modules.items():
        path = find(model_hash, name)
        found[layer] = None if path is None else Moments.load(path, [name]).matrices[name]
    return found


def _is_embedded(model: nn.Module) -> bool:
    name = str(getattr(model, "name_or_path", "") or "")
    return name == ATLAS or (bool(name) and Path(name).resolve() == atlas.MODEL_PATH.resolve())


def _missing(model: nn.Module, view: ModelView, layers: list[int]) -> StatisticsNotFoundError:
    name = getattr(model, "name_or_path", "") or "MODEL"
    width = view.intermediate_size
    return StatisticsNotFoundError(
        f"no key statistics of layers {layers} of {name} (with these weights) in {cache_folder()}; "
        f"collect them once with `lightning-edit stats --lm {name} --text FILE "
        f"--layers '{layers}'`, about one forward pass over the text (at least {10 * width:,} "
        "tokens are advised), or ask for plain least squares with statistics='identity'"
    )


# -------------------------------------------------------------------------------------- collecting


@torch.no_grad()
def collect(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[str],
    layers: Sequence[int],
    max_tokens: int | None = None,
    max_length: int = 1024,
    batch_tokens: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> Moments:
    """Run the model over texts once and take the second moments of all layers on the way.

    Args:
        model: The language model, unedited.
        tokenizer: Its tokenizer.
        texts: Documents; read once, never held together in memory.
        layers: Block numbers.
        max_tokens: Stop after so many tokens.
        max_length: Documents are cut to so many tokens, and to what the model can take.
        batch_tokens: Tokens in one forward pass, padding included.
        progress: Called with the number of new tokens after every pass.

    Returns:
        The moments.

    Raises:
        DataError: If the texts hold no token.
    """
    view = resolve(model)
    names = [view.down_projection(layer) for layer in layers]
    device = view.embeddings.get_parameter("weight").device
    metrics = {
        name: SecondMoment(weight(model, f"{name}.weight").shape[1]).to(device) for name in names
    }
    wanted: dict[str, Side] = dict.fromkeys(names, "input")
    digest = hashlib.sha256()
    limit = _longest(model, max_length)
    seen = 0
    for batch in _batches(_documents(tokenizer, texts, limit, max_tokens, digest), batch_tokens):
        ids, mask = _padded(batch, device)
        with capture(model, wanted, stop=True) as keys:
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        for name, metric in metrics.items():
            metric.update(keys[name][mask.bool()])
        new = int(mask.sum())
        seen += new
        if progress is not None:
            progress(new)
    if not seen:
        raise DataError("the texts hold no token; give a file with one document a line")
    matrices = {name: metric.compute().float() for name, metric in metrics.items()}
    return Moments(matrices, seen, weights_hash(model), digest.hexdigest())


def _longest(model: nn.Module, max_length: int) -> int:
    config: Any = model.config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return max_length if positions is None else min(max_length, int(positions))


def _documents(
    tokenizer: Any, texts: Iterable[str], limit: int, max_tokens: int | None, digest: Any
) -> Iterator[list[int]]:
    """Yield documents in tokens until the budget is used up; note them in the digest."""
    left = max_tokens
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"][:left]
        digest.update(json.dumps(ids).encode())
        if ids:
            yield ids
        if left is not None:
            left -= len(ids)
            if left <= 0:
                return


def _batches(documents: Iterator[list[int]], batch_tokens: int) -> Iterator[list[list[int]]]:
    """Group documents of like length; a window bounds memory whatever the corpus' length."""
    while window := list(itertools.islice(documents, 512)):
        batch: list[list[int]] = []
        for ids in sorted(window, key=len, reverse=True):
            if batch and len(batch[0]) * (len(batch) + 1) > batch_tokens:
                yield batch
                batch = []
            batch.append(ids)
        yield batch


def _padded(batch: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids padded on the right, and their mask."""
    ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids.to(device), mask.to(device)
