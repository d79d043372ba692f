"""``lightning-edit stats``: collect the key statistics (second moments) of closed-form editors."""

import argparse
import hashlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_edit.cli.signals import SIGNAL_STATUS
from lightning_edit.cli.stats_options import parse_options
from lightning_edit.exceptions import ConfigError
from lightning_edit.statistics.texts import Texts, texts_of

if TYPE_CHECKING:  # --help must not import torch
    from lightning_edit.distributed.sharding import Share
    from lightning_edit.statistics.moments import Moments
    from lightning_edit.statistics.partial import PartialSums


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit stats``.

    Under ``torchrun`` the forward passes are sharded over processes; rank 0 saves the result.

    Args:
        argv: Arguments after ``stats``; ``None`` reads ``sys.argv``.

    Returns:
        Exit status: 0, or 128 plus the number of the signal that interrupted it.

    Raises:
        LightningEditError: An error that the user can fix; the caller prints it.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parse_options(given)
    if arguments.text is None:
        _decompose_cached(arguments)
        return 0
    texts = texts_of(
        arguments.text, arguments.text_config, arguments.text_split, arguments.text_field
    )
    with _process_group(arguments.device) as (share, device):
        try:
            moments, partial = _collect(arguments, texts, share, device)
        except KeyboardInterrupt as interrupt:
            rest = shlex.join(option for option in given if option != "--restart")
            sys.stderr.write(
                "Interrupted. The partial sums are kept; go on where it ended with\n"
                f"  lightning-edit stats {rest}\n"
            )
            return SIGNAL_STATUS + (interrupt.args[0] if interrupt.args else signal.SIGINT)
        if share.rank == 0:
            _print_summary(moments, _save_moments(moments, arguments.out))
        partial.discard()
        if arguments.projector is not None and share.rank == 0:
            # Saved before as well: the eigendecomposition of wide layers takes minutes.
            moments = moments.decompose()
            _save_moments(moments, arguments.out)
            _print_null_spaces(moments, arguments.projector)
    return 0


def _save_moments(moments: "Moments", out: Path | None) -> list[Path]:
    """Save moments to ``--out`` if given, else to the cache; return the paths."""
    from lightning_edit.statistics.cache import store

    if out is None:
        return store(moments)
    moments.save(out)
    return [out]


def _collect(
    arguments: argparse.Namespace, texts: Texts, share: "Share", device: str
) -> tuple["Moments", "PartialSums"]:
    # Imported late: --help and usage errors must not wait for torch.
    from lightning_edit.models.loading import load_language_model
    from lightning_edit.models.view import resolve
    from lightning_edit.statistics.collect import collect, default_batch_tokens

    # The batch size is part of the key of the partial sums.
    arguments.batch_tokens = arguments.batch_tokens or default_batch_tokens(device)
    model, tokenizer = load_language_model(
        arguments.lm,
        arguments.lm_dtype,
        arguments.lm_revision,
        arguments.lm_bos,
        arguments.lm_trust_remote_code,
    )
    layers = _selected_layers(arguments, resolve(model).num_blocks)
    partial = _partial_sums(arguments, texts, share, model, layers)
    if arguments.restart:
        partial.discard()
    total = None if arguments.max_tokens else texts.count()
    bar = _progress_bar(
        total or arguments.max_tokens, by_text=not arguments.max_tokens, share=share
    )
    with _stop_after_save(partial), bar as step:
        moments = collect(
            model.to(device),  # type: ignore[arg-type]  # transformers' stub of `to` wants no str
            tokenizer,
            texts,
            layers,
            arguments.max_tokens,
            arguments.max_length,
            arguments.batch_tokens,
            progress=step,
            partial=partial,
            share=share,
            shrinkage=None if arguments.shrinkage == "none" else arguments.shrinkage,
        )
    return moments, partial


def _selected_layers(arguments: argparse.Namespace, blocks: int) -> list[int]:
    return list(range(blocks)) if arguments.layers is None else list(arguments.layers)


def _decompose_cached(arguments: argparse.Namespace) -> None:
    """Add eigendecompositions to the cached moments of a model."""
    from lightning_edit.models.loading import load_language_model
    from lightning_edit.models.view import resolve
    from lightning_edit.statistics.cache import files_for
    from lightning_edit.statistics.moments import Moments

    model, tokenizer = load_language_model(
        arguments.lm,
        arguments.lm_dtype,
        arguments.lm_revision,
        arguments.lm_bos,
        arguments.lm_trust_remote_code,
    )
    view = resolve(model)
    layers = _selected_layers(arguments, view.num_blocks)
    for layer, path in files_for(model, tokenizer, layers, "auto").items():
        name = view.down_projection(layer)
        moments = Moments.load(path, with_spectra=True)
        if name not in moments.spectra:
            moments = moments.decompose()
            moments.save(path)
        _print_null_spaces(moments.only(name), arguments.projector)


def _partial_sums(
    arguments: argparse.Namespace, texts: Texts, share: "Share", model: Any, layers: list[int]
) -> "PartialSums":
    """Return the file of partial sums, named by a hash of everything that changes the sums."""
    from lightning_edit.models.weights import weights_hash
    from lightning_edit.statistics.cache import cache_folder
    from lightning_edit.statistics.partial import PartialSums

    fingerprint = [texts.identity, layers, share.rank, share.processes, weights_hash(model)]
    names = ("lm_bos", "max_tokens", "max_length", "batch_tokens", "shrinkage")
    fingerprint += [getattr(arguments, name) for name in names]
    name = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()[:32]
    path = cache_folder() / "unfinished" / f"{name}.safetensors"
    return PartialSums(path, arguments.save_every)


@contextmanager
def _stop_after_save(partial: "PartialSums") -> Iterator[None]:
    """Stop after a save on SIGINT (Ctrl-C) or SIGTERM; a second signal stops at once."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.default_int_handler)
        partial.request_stop(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _process_group(device: str | None) -> Iterator[tuple["Share", str]]:
    """Initialise the process group under ``torchrun``; yield this process's share and device."""
    import torch
    from torch import distributed

    from lightning_edit.distributed.sharding import Share

    count = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = device or (f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(chosen)
    except RuntimeError as error:
        raise ConfigError(f"--device {chosen!r} is not known; use cpu, cuda or cuda:0") from error
    if count == 1:
        yield Share(), chosen
        return
    # Imported now: imported later, by transformers, it would take the group as a default argument
    # and keep it alive beyond `destroy_process_group`; a thread of gloo that frees a tensor while
    # Python shuts down aborts the process.
    import torch.distributed.nn

    distributed.init_process_group("nccl" if chosen.startswith("cuda") else "gloo")
    try:
        yield Share(distributed.get_rank(), count), chosen
    finally:
        distributed.destroy_process_group()


@contextmanager
def _progress_bar(total: int | None, by_text: bool, share: "Share") -> Iterator[Any]:
    """Show a progress bar with the remaining time, on rank 0 only."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from lightning_edit.report.console import VisibleConsole

    columns = (
        TextColumn("collecting"),
        BarColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeRemainingColumn(),
    )
    console = VisibleConsole(highlight=False, stderr=True)
    with Progress(*columns, console=console, transient=True, disable=share.rank > 0) as bar:
        task = bar.add_task("", total=total, tokens=0)

        def step(position: Any) -> None:
            done = position.texts if by_text else position.tokens
            bar.update(task, completed=done, tokens=position.tokens)

        yield step


def _print_summary(moments: "Moments", paths: Sequence[Path]) -> None:
    from lightning_edit.report.console import VisibleConsole

    console = VisibleConsole(highlight=False)
    console.print(f"{moments.tokens:,} tokens of {len(moments.matrices)} layers")
    if moments.target:
        shares = ", ".join(f"{share:.2f}" for share in moments.intensities.values())
        console.print(f"  shrunk towards the {moments.target} by {shares}")
    for path in paths:
        console.print(f"  {path}", soft_wrap=True)


def _print_null_spaces(moments: "Moments", threshold: tuple[Any, float]) -> None:
    """Print the null space dimension of each layer; a layer without a null space is no error."""
    from lightning_edit.exceptions import SolveError
    from lightning_edit.report.console import VisibleConsole

    console, (kind, bound) = VisibleConsole(highlight=False), threshold
    for name, spectrum in moments.spectra.items():
        try:
            free = spectrum.null_space(bound, kind, name).shape[1]
        except SolveError:
            free = 0
        console.print(
            f"  {name}: {free:,} of {len(spectrum.values):,} directions are free ({kind}:{bound:g})"
        )
