"""Cache of key statistics on disk, and lookup of those that an editor needs."""

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_edit import atlas
from lightning_edit.exceptions import StatisticsNotFoundError
from lightning_edit.functional.nullspace import Spectrum
from lightning_edit.models.loading import ATLAS
from lightning_edit.models.view import ModelView, resolve
from lightning_edit.models.weights import weights_hash
from lightning_edit.statistics.collect import added_ids, collect
from lightning_edit.statistics.moments import Moments

_log = logging.getLogger(__name__)

#: Tokens of the embedded model's own text: about 80 per key dimension. Twice as many, or all
#: 411,135, change no score of 100 edits in one batch.
_EMBEDDED_TOKENS = 50_000


def cache_folder() -> Path:
    """Return the statistics cache folder, in ``$LIGHTNING_EDIT_CACHE`` or ``~/.cache``."""
    base = os.environ.get("LIGHTNING_EDIT_CACHE")
    return Path(base or Path.home() / ".cache" / "lightning-edit") / "statistics"


def model_folder(model_hash: str, specials: Sequence[int]) -> Path:
    """Return the cache folder of one model's statistics.

    A tokenizer that prepends BOS to every text changes the input, and so the statistics.

    Args:
        model_hash: :func:`~lightning_edit.models.weights.weights_hash` of the model.
        specials: Token ids that the tokenizer adds to every text.
    """
    added = f"-with-{'_'.join(map(str, specials))}" if specials else ""
    return cache_folder() / f"{model_hash[:32]}{added}"


def store(moments: Moments) -> list[Path]:
    """Save moments to the cache, one file per module; return the paths."""
    paths = []
    folder = model_folder(moments.model, moments.specials)
    for name, matrix in moments.matrices.items():
        dtype = str(matrix.dtype).removeprefix("torch.")
        parts = [name, dtype, moments.corpus[:12], moments.target, str(moments.tokens)]
        path = folder / f"{'-'.join(part for part in parts if part)}.safetensors"
        moments.only(name).save(path)
        paths.append(path)
    return paths


def find(
    model_hash: str, modules: Sequence[str], specials: Sequence[int] = ()
) -> dict[str, Path | None]:
    """Find cached statistics of modules: of one text for all of them, the one with most tokens.

    Where no text has them all, each module gets its own with the most tokens, which is logged as a
    warning; so is a choice among texts with equally many tokens, which falls on the first by the
    hash of its text, on every machine the same.

    Args:
        model_hash: :func:`~lightning_edit.models.weights.weights_hash` of the model.
        modules: Dotted names of the modules.
        specials: Token ids that the tokenizer adds to every text.

    Returns:
        Paths by module; ``None`` where there are none.
    """
    folder = model_folder(model_hash, specials)
    collections: dict[str, dict[str, Path]] = {}
    for module in modules:
        for path in folder.glob(f"{glob.escape(module)}-*.safetensors"):
            name = path.stem.removeprefix(f"{module}-")
            # A file that somebody else put there has no number of tokens in its name.
            if name.rpartition("-")[2].isdecimal():
                collections.setdefault(name, {})[module] = path
    ranked = sorted(collections, key=lambda name: (-_tokens(name), name))
    whole = [name for name in ranked if len(collections[name]) == len(set(modules))]
    if whole:
        equal = [name for name in whole if _tokens(name) == _tokens(whole[0])]
        if len(equal) > 1:
            _warn_once(
                f"{len(equal)} key statistics have {_tokens(whole[0]):,} tokens each: "
                f"{', '.join(equal)} in {folder}; the first is used. Give one with "
                "`statistics=FILE`, or remove the others"
            )
        return dict(collections[whole[0]])
    found = {
        module: next(
            (collections[one][module] for one in ranked if module in collections[one]), None
        )
        for module in modules
    }
    names = {path.stem.removeprefix(f"{module}-") for module, path in found.items() if path}
    if len(names) > 1:
        _warn_once(
            f"no text in {folder} has key statistics of all of {', '.join(modules)}: used are "
            f"{', '.join(sorted(names))}; collect them together with `lightning-edit stats`"
        )
    return found


def _tokens(name: str) -> int:
    return int(name.rpartition("-")[2])


@cache
def _warn_once(text: str) -> None:
    _log.warning(text)


def names_in_cache(model: nn.Module, tokenizer: Any) -> list[str]:
    """Return which texts, with how many tokens, `auto` takes key statistics of a model from.

    Args:
        model: The unedited language model.
        tokenizer: Its tokenizer.

    Returns:
        Names such as ``float32-0123456789ab-20000``, over all layers that have statistics.
    """
    view = resolve(model)
    model_hash, specials = weights_hash(model), added_ids(tokenizer)
    names = set()
    for layer in range(view.num_blocks):
        module = view.down_projection(layer)
        path = find(model_hash, [module], specials)[module]
        if path is not None:
            names.add(path.stem.removeprefix(f"{module}-"))
    return sorted(names)


def files_for(
    model: nn.Module, tokenizer: Any, layers: Sequence[int], source: str
) -> dict[int, Path]:
    """Return the statistics files of an editor's layers; raise an error if some are missing.

    Args:
        model: The unedited language model.
        tokenizer: Its tokenizer.
        layers: Block numbers.
        source: ``auto``: the cache, by the rule of :func:`find`; for the embedded default model
            they are collected now if missing. ``identity``: none, i.e. every direction of key space
            has the same weight. Else a file.

    Returns:
        Paths by block number; empty for the identity.

    Raises:
        StatisticsNotFoundError: If they have not been collected.
    """
    if source == "identity":
        return {}
    if source != "auto":
        return dict.fromkeys(layers, Path(source))
    view = resolve(model)
    modules = {layer: view.down_projection(layer) for layer in layers}
    model_hash, specials = weights_hash(model), added_ids(tokenizer)
    found = find(model_hash, list(modules.values()), specials)
    if None in found.values() and is_embedded(model):
        _log.info("collecting key statistics of the embedded model (once)")
        # That text is sorted by relation: its beginning covers a few relations only, and edits of
        # the others would be unconstrained (100 by MEMIT in one batch: 0.70 instead of 0.93).
        texts = atlas.corpus(shuffled=True)
        store(collect(model, tokenizer, texts, range(view.num_blocks), _EMBEDDED_TOKENS))
        found = find(model_hash, list(modules.values()), specials)
    if missing := [layer for layer, name in modules.items() if found[name] is None]:
        raise _not_found_error(model, tokenizer, view, missing)
    paths = {layer: found[name] for layer, name in modules.items()}
    _log.info("key statistics: %s", ", ".join(path.name for path in paths.values() if path))
    return {layer: path for layer, path in paths.items() if path is not None}


def moments_in(
    files: Mapping[int, Path], view: ModelView, layers: Sequence[int]
) -> dict[int, Tensor | None]:
    """Load the second moments of some layers from files.

    Args:
        files: Result of :func:`files_for`.
        view: View of the model.
        layers: Block numbers.

    Returns:
        Moments by block number; ``None`` stands for the identity.
    """
    found: dict[int, Tensor | None] = dict.fromkeys(layers)
    for layer, path in files.items():
        name = view.down_projection(layer)
        found[layer] = Moments.load(path, [name]).matrices[name]
    return found


def spectra_in(files: Mapping[int, Path], view: ModelView) -> dict[int, Spectrum]:
    """Load the spectra of layers that ``lightning-edit stats --projector`` has stored.

    Args:
        files: Result of :func:`files_for`.
        view: View of the model.

    Returns:
        Spectra by block number, for the layers that have one.
    """
    names = {layer: view.down_projection(layer) for layer in files}
    found = {
        layer: Moments.load(path, [names[layer]], with_spectra=True).spectra
        for layer, path in files.items()
    }
    return {layer: each[names[layer]] for layer, each in found.items() if each}


def moments_for(
    model: nn.Module, tokenizer: Any, layers: Sequence[int], source: str
) -> dict[int, Tensor | None]:
    """Return the second moments of an editor's layers: file lookup and loading in one call.

    Args:
        model: The unedited language model.
        tokenizer: Its tokenizer.
        layers: Block numbers.
        source: As for :func:`files_for`.

    Returns:
        Moments by block number; ``None`` stands for the identity.

    Raises:
        StatisticsNotFoundError: If they have not been collected.
    """
    files = files_for(model, tokenizer, layers, source)
    return moments_in(files, resolve(model), layers)


def is_embedded(model: nn.Module) -> bool:
    """Return whether a model is the embedded default model, by where it was loaded from.

    Args:
        model: A language model.
    """
    name = str(getattr(model, "name_or_path", "") or "")
    return name == ATLAS or (bool(name) and Path(name).resolve() == atlas.MODEL_PATH.resolve())


def _not_found_error(
    model: nn.Module, tokenizer: Any, view: ModelView, layers: list[int]
) -> StatisticsNotFoundError:
    name = getattr(model, "name_or_path", "") or "MODEL"
    width = view.intermediate_size
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    options = "" if dtype == "float32" else f" --lm_dtype {dtype}"
    bos = tokenizer.bos_token_id
    if bos is not None and added_ids(tokenizer)[:1] == (bos,):
        options += " --lm_bos true"
    return StatisticsNotFoundError(
        f"no key statistics of layers {layers} of {name} (with these weights) in {cache_folder()}; "
        f"collect them once with `lightning-edit stats --lm {name}{options} --text FILE "
        f"--layers '{layers}'`, about one forward pass over the text (at least {10 * width:,} "
        "tokens are advised), or ask for plain least squares with statistics='identity'"
    )
