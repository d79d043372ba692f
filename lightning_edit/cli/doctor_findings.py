"""Tables of a model's structure, editable modules and memory, for ``lightning-edit doctor``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from lightning_edit.exceptions import ConfigError
from lightning_edit.models.chat_template import own_system_message, thinking_note
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.models.view import BlockView, ModelView, Stack
from lightning_edit.models.weights import weight

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(count: int) -> str:
    """Format a number of bytes with a binary unit.

    Example:
        >>> format_bytes(1536)
        '1.5 KiB'
    """
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def _model_bytes(view: ModelView) -> int:
    return sum(p.numel() * p.element_size() for p in view.model.parameters())


def empty_table(title: str, *columns: str) -> Table:
    """Return a table without rows, in the report's style.

    Args:
        title: Its title.
        *columns: Names of the columns.
    """
    heading = Text(title, style="bold")
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def summary_table(name: str, view: ModelView, chat: str | None = None) -> Table:
    """Tabulate a model's class, architecture, parameter count, dtype, depth and widths.

    Args:
        name: Name of the model, as the user gave it.
        view: The model's structure.
        chat: Its chat template in words, see :func:`chat_row`; ``None``: no row.
    """
    count = sum(parameter.numel() for parameter in view.model.parameters())
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in view.model.parameters()})
    tied = weight(view.model, f"{view.name_of(view.head)}.weight").tied_to
    blocks = f"{view.num_blocks}"
    if view.is_encoder_decoder:
        blocks += f" in the decoder, {len(view.encoder_blocks)} in the encoder"
    table = empty_table(name, "", "")
    table.show_header = False
    for label, value in (
        ("class", type(view.model).__name__),
        ("kind", "encoder-decoder" if view.is_encoder_decoder else "decoder-only"),
        ("parameters", f"{count:,} as {', '.join(dtypes)}: {format_bytes(_model_bytes(view))}"),
        ("blocks", blocks),
        ("widths", f"{view.hidden_size} hidden, {view.intermediate_size} inside the MLP"),
        ("head", f"tied to {', '.join(tied)}" if tied else "has weights of its own"),
        *([] if chat is None else [("chat template", chat)]),
    ):
        table.add_row(label, value)
    return table


def chat_row(tokenizer: Any) -> str:
    """Describe how a model is asked as a chat: its template, and the system message it adds.

    Args:
        tokenizer: The model's tokenizer; ``None``: it has none that can be read.
    """
    if tokenizer is None:
        return "no tokenizer found"
    if not getattr(tokenizer, "chat_template", None):
        return "none: prompts are plain text"
    try:
        own = own_system_message(tokenizer)
        note = thinking_note(tokenizer, PromptFormat(True))
    except ConfigError as error:
        return str(error)
    added = "no system message of its own" if own is None else f"adds the system message {own!r}"
    thinks = "" if note is None else f". Note: {note}"
    return f"yes ({added}); edit through it with --lm_chat true{thinks}"


def parts_table(view: ModelView) -> Table:
    """Tabulate module paths of the editable layers, with weight shapes as (d_out × d_in).

    Args:
        view: The model's structure.
    """
    table = empty_table("Parts found (* = number of the block)", "part", "where", "shape", "layer")
    for stack, blocks in (("", view.blocks), ("encoder ", view.encoder_blocks)):
        for label, path in _block_parts(blocks[0]) if blocks else ():
            star = path.replace(blocks[0].name, blocks[0].name.removesuffix("0") + "*", 1)
            table.add_row(stack + label, star, *_describe_linear(view, path))
    for label, module in (
        ("final norm", view.final_norm),
        ("head", view.head),
        ("embeddings", view.embeddings),
    ):
        if module is None:
            table.add_row(label, "none", "", "")
        else:
            path = view.name_of(module)
            table.add_row(label, path, *_describe_linear(view, path))
    return table


def _block_parts(block: BlockView) -> Iterator[tuple[str, str]]:
    yield "MLP down", block.mlp_down
    for up in block.mlp_up:
        yield "MLP in", up
    yield "MLP output", block.mlp
    yield "attention out", block.attention_out
    if block.cross_attention_out is not None:
        yield "cross-attention out", block.cross_attention_out


def _describe_linear(view: ModelView, path: str) -> tuple[str, str]:
    """Return a layer's weight shape as (d_out × d_in), and its class."""
    module = view.model.get_submodule(path)
    if "weight" not in dict(module.named_parameters(recurse=False)):
        return "", type(module).__name__
    found = weight(view.model, f"{path}.weight")
    kind = type(module).__name__ + (", transposed" if found.transposed else "")
    return " × ".join(map(str, found.shape)), kind


def final_editors() -> list[type[Any]]:
    """Return all concrete editor classes of the library (no family base classes), by name."""
    import lightning_edit.editors  # noqa: F401  # importing it defines the classes
    from lightning_edit.editors.base import Editor

    def subclasses(cls: type[Any]) -> Iterator[type[Any]]:
        for child in cls.__subclasses__():
            yield child
            yield from subclasses(child)

    concrete = {
        cls
        for cls in subclasses(Editor)
        if not cls._family and cls.__module__.startswith("lightning_edit.")
    }
    return sorted(concrete, key=lambda cls: cls.__name__)


def methods_table(view: ModelView, editors: Sequence[type[Any]]) -> Table:
    """Tabulate each editor's default layers by stack, required stages, and memory.

    Args:
        view: The model's structure.
        editors: Concrete editor classes; their class methods and flags are read.
    """
    table = empty_table(
        "Methods", "method", "default layers", "run first", "weights", "editing", "sum"
    )
    kind = "encoder-decoder" if view.is_encoder_decoder else "decoder-only"
    for cls in editors:
        if kind not in cls.architectures:
            table.add_row(cls.__name__, f"does not edit {kind} models", *[""] * 4)
            continue
        sites = cls.default_sites(view)
        layers: list[int] = sites.get("decoder") or next(iter(sites.values()), [])
        weights, extra = _model_bytes(view), cls.memory_bytes(view, layers)
        needs = (("fit", cls.needs_fit), ("stats", cls.needs_statistics))
        table.add_row(
            cls.__name__,
            _sites_in_words(sites, view.is_encoder_decoder) or "–",
            ", ".join(verb for verb, needed in needs if needed) or "–",
            format_bytes(weights),
            format_bytes(extra) if extra else "–",
            format_bytes(weights + extra),
        )
    return table


def _sites_in_words(sites: Mapping[Stack, Sequence[int]], name_stacks: bool) -> str:
    listed = [
        (f"{stack} " if name_stacks else "") + ", ".join(map(str, layers))
        for stack, layers in sites.items()
        if layers
    ]
    return "; ".join(listed)
