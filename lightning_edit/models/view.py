"""Module lookup in language models, by structure and never by model name: blocks, MLPs, head.

It finds the list of transformer blocks; in each block one attention part and one MLP; in the MLP
the projections that read the hidden state and the down-projection that writes it back; around the
blocks the final norm, the output head and the token embeddings.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_edit.exceptions import ArchitectureError

Stack = Literal["encoder", "decoder"]
"""One of two stacks of blocks; a decoder-only model has the decoder alone."""


@dataclass(frozen=True)
class BlockView:
    """Parts of one transformer block; all paths are dotted module names inside the whole model.

    Args:
        name: Path of the block.
        module: The block itself.
        mlp_down: Path of the MLP down-projection, which writes into the hidden state.
        mlp_up: Paths of the MLP up-projections, which read the hidden state; two if there is a
            gate.
        mlp: Path of the MLP module; equals ``mlp_down`` where a block has none (OPT, BART). Its
            output is that of ``mlp_down``, or its sum with the hidden state (BLOOM, MPT).
        attention_out: Path of the self-attention's output projection.
        cross_attention_out: Path of the cross-attention's output projection; ``None`` without one.
    """

    name: str
    module: nn.Module
    mlp_down: str
    mlp_up: tuple[str, ...]
    mlp: str
    attention_out: str
    cross_attention_out: str | None = None


@dataclass(frozen=True)
class ModelView:
    """Language model as transformer blocks, MLPs, embeddings and an output head.

    Args:
        model: The model itself.
        blocks: Its blocks from the first to the last; of an encoder-decoder model the decoder's.
        encoder_blocks: The encoder's blocks; empty for decoder-only models.
        final_norm: Norm between the last block and the head; ``None`` where there is none (BART).
        head: Module that maps hidden states to logits.
        embeddings: Token embeddings.
        hidden_size: Width of the hidden state between blocks.
        intermediate_size: Width inside the MLP, i.e. of the keys of a down-projection.
        is_encoder_decoder: Whether an encoder reads the prompt.
    """

    model: nn.Module
    blocks: tuple[BlockView, ...]
    encoder_blocks: tuple[BlockView, ...]
    final_norm: nn.Module | None
    head: nn.Module
    embeddings: nn.Module
    hidden_size: int
    intermediate_size: int
    is_encoder_decoder: bool

    @property
    def num_blocks(self) -> int:
        """Number of (decoder) blocks."""
        return len(self.blocks)

    def require_plain(self) -> None:
        """Check that no projection has got an adapter since the model was resolved.

        Raises:
            ArchitectureError: If one has.
        """
        for block in (*self.blocks, *self.encoder_blocks):
            for name in (block.mlp_down, *block.mlp_up, block.attention_out):
                if hasattr(self.model.get_submodule(name), "base_layer"):
                    raise _adapted_error(name)

    @cached_property
    def block_numbers(self) -> dict[int, int]:
        """Number of the block that each module is in, by ``id``; looked up once a view."""
        return {
            id(module): number
            for number, block in enumerate(self.blocks)
            for module in block.module.modules()
        }

    @cached_property
    def last_block_parts(self) -> list[nn.Module]:
        """Parts of the last block that see one token at a time: all with parameters but attention.

        There are none without an MLP module (OPT), where the MLP's layers see rows and positions on
        one axis. Looked up once a view.
        """
        block = self.blocks[-1]
        if block.mlp == block.mlp_down:
            return []
        out = self.model.get_submodule(block.attention_out)
        return [
            child
            for child in block.module.children()
            if out not in set(child.modules()) and any(True for _ in child.parameters())
        ]

    @cached_property
    def configs(self) -> list[Any]:
        """Distinct configs from which the model's modules choose their attention."""
        return configs_of(self.model)

    def stack(self, name: Stack) -> tuple[BlockView, ...]:
        """Return the blocks of a stack.

        Args:
            name: Which stack.

        Raises:
            ArchitectureError: If the model has no encoder.
        """
        if name == "decoder":
            return self.blocks
        if not self.is_encoder_decoder:
            raise ArchitectureError(
                f"the encoder was asked for, but {type(self.model).__name__} is decoder-only; "
                "leave `stack` out, or take an encoder-decoder model"
            )
        return self.encoder_blocks

    def block(self, index: int, stack: Stack = "decoder") -> BlockView:
        """Return one block by its number.

        Args:
            index: The number, from 0.
            stack: Stack that it is in.

        Raises:
            ArchitectureError: If the model has no such stack, or no block of that number in it.
        """
        blocks = self.stack(stack)
        if not 0 <= index < len(blocks):
            where = f"{stack} of the model" if self.is_encoder_decoder else "model"
            raise ArchitectureError(
                f"layer {index} was asked for, but the {where} has layers 0 to "
                f"{len(blocks) - 1}; choose one of them"
            )
        return blocks[index]

    def down_projection(self, index: int) -> str:
        """Return the dotted module name of one block's MLP down-projection."""
        return self.block(index).mlp_down

    def parameter(self, index: int) -> str:
        """Return the dotted parameter name of one block's MLP down-projection weight."""
        return f"{self.block(index).mlp_down}.weight"

    def name_of(self, module: nn.Module) -> str:
        """Return the dotted name of a module of the model, e.g. of :attr:`head`."""
        return _name_of(self.model, module)


def configs_of(model: nn.Module) -> list[Any]:
    """Return the distinct configs from which a model's modules choose their attention.

    Args:
        model: The model.
    """
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


def depth_fraction(view: ModelView, fractions: Sequence[float]) -> list[int]:
    """Convert relative depths to block numbers, so that one default fits models of any depth.

    Args:
        view: The model.
        fractions: Depths from 0.0 (first block) to 1.0 (last block).

    Returns:
        Block numbers in rising order, each once.

    Raises:
        ValueError: If a fraction lies outside 0 to 1.
    """
    if outside := [fraction for fraction in fractions if not 0.0 <= fraction <= 1.0]:
        raise ValueError(f"depths are fractions from 0 to 1, got {outside[0]}")
    return sorted({round(fraction * (view.num_blocks - 1)) for fraction in fractions})


#: Suffix of a linear layer that an adapter of PEFT wraps.
_ADAPTED = ".base_layer"


def resolve(model: nn.Module, reading: bool = False) -> ModelView:
    """Find the blocks, MLPs, norm, head and embeddings of a Hugging Face language model.

    Args:
        model: A causal or sequence-to-sequence language model with its head, on any device
            (meta too: only names, types and shapes are read).
        reading: The parts are read only, so that a projection may carry an adapter of PEFT, as in
            somebody's LoRA training; its name is then that of the layer with the adapter.

    Raises:
        ArchitectureError: If a part is missing or not unique; the message says what was looked for
            and what was found.
    """
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ArchitectureError(
            f"{type(model).__name__} is compiled, and compiled code keeps the weights and hooks of "
            "its first call; edit the model before `torch.compile` and compile it afterwards (a "
            "wrapped model is `compiled._orig_mod`)"
        )
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or not hasattr(model, "get_output_embeddings"):
        raise ArchitectureError(
            f"{type(model).__name__} is not a Hugging Face language model (no `config` or no "
            "`get_output_embeddings`); load one with AutoModelForCausalLM or AutoModelForSeq2SeqLM"
        )
    hidden = getattr(config.get_text_config(), "hidden_size", None)
    head, embeddings = (
        _call_getter(model, "get_output_embeddings"),
        _call_getter(model, "get_input_embeddings"),
    )
    if hidden is None or head is None or embeddings is None:
        raise ArchitectureError(
            f"{type(model).__name__} lacks one of: config.hidden_size ({hidden}), output head "
            f"({_type_name(head)}), token embeddings ({_type_name(embeddings)}); editing needs a "
            "model with a language-modelling head, such as AutoModelForCausalLM gives"
        )
    encoder_decoder = bool(config.is_encoder_decoder)
    decoder = _call_getter(model, "get_decoder") or model
    owner_name, blocks = _blocks(model, _name_of(model, decoder), hidden, reading)
    encoder_blocks: tuple[BlockView, ...] = ()
    if encoder_decoder:
        encoder = _call_getter(model, "get_encoder") or model
        encoder_blocks = _blocks(model, _name_of(model, encoder), hidden, reading)[1]
    down = model.get_submodule(blocks[0].mlp_down)
    return ModelView(
        model=model,
        blocks=blocks,
        encoder_blocks=encoder_blocks,
        final_norm=_final_norm(model.get_submodule(owner_name), owner_name),
        head=head,
        embeddings=embeddings,
        hidden_size=hidden,
        intermediate_size=_sizes(down)[0],
        is_encoder_decoder=encoder_decoder,
    )


def _call_getter(model: nn.Module, getter: str) -> nn.Module | None:
    """Call a getter of a transformers model; ``None`` if the getter or the part is absent."""
    method: Callable[[], nn.Module | None] | None = getattr(model, getter, None)
    try:
        return None if method is None else method()
    except NotImplementedError:  # transformers' way to say that a model has no such part
        return None


def _type_name(module: object) -> str:
    return "none" if module is None else type(module).__name__


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    names: Iterator[str] = (name for name, module in model.named_modules() if module is wanted)
    return next(names)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """Return (inputs, outputs) of a linear layer, whichever way it stores its weight."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    rows, columns = linear.get_parameter("weight").shape
    return int(rows), int(columns)


def _block_lists(module: nn.Module, name: str) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield candidate block lists: outermost lists of one module class with linear layers."""
    if isinstance(module, nn.ModuleList):
        if len({type(child) for child in module}) == 1 and any(map(_is_linear, module.modules())):
            yield name, module
        return
    for child_name, child in module.named_children():
        yield from _block_lists(child, _join(name, child_name))


def _blocks(
    model: nn.Module, stack: str, hidden: int, reading: bool
) -> tuple[str, tuple[BlockView, ...]]:
    """Find the transformer blocks under one stack; return their owner's name and the blocks."""
    found = list(_block_lists(model.get_submodule(stack), stack))
    if not found:
        raise ArchitectureError(
            f"{type(model).__name__}: looked under {stack or 'the model'!r} for a ModuleList of "
            "transformer blocks of one class with linear layers and found none; "
            "this architecture is not supported, use a dense transformer"
        )
    name, modules = max(found, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    blocks = tuple(
        _block(f"{name}.{index}", module, hidden, reading) for index, module in enumerate(modules)
    )
    return name.rpartition(".")[0], blocks


def _block(name: str, module: nn.Module, hidden: int, reading: bool) -> BlockView:
    """Find the MLP and attention projections of one transformer block."""
    found = {part: layer for part, layer in module.named_modules() if _is_linear(layer)}
    adapted = {part.removesuffix(_ADAPTED) for part in found if part.endswith(_ADAPTED)}
    # A layer with an adapter counts as one; the adapter's own matrices are no parts of a block.
    linears = {
        part.removesuffix(_ADAPTED): layer
        for part, layer in found.items()
        if part.endswith(_ADAPTED) or not any(part.startswith(f"{one}.") for one in adapted)
    }
    attentions: dict[str, list[str]] = {}
    rest: list[str] = []
    for part in linears:
        if _inside_attention(module, part):
            attentions.setdefault(part.rpartition(".")[0], []).append(part)
        else:
            rest.append(part)
    outs = [
        last[-1]
        for group in attentions.values()
        if (last := [part for part in group if _sizes(linears[part])[1] == hidden])
    ]
    if not outs:
        raise _unsupported(name, module, "an attention part with an output projection", linears)
    _refuse_experts(name, module, hidden)
    down, ups = _mlp(name, module, {part: linears[part] for part in rest}, hidden)
    if not reading and (edited := adapted & {down, *ups, *outs}):
        raise _adapted_error(_join(name, min(edited)))
    owner = down.rpartition(".")[0]
    return BlockView(
        name=name,
        module=module,
        mlp_down=_join(name, down),
        mlp_up=tuple(_join(name, up) for up in ups),
        # With no module of its own (OPT, BART) the MLP ends at its last projection.
        mlp=_join(name, owner or down),
        attention_out=_join(name, outs[0]),
        cross_attention_out=_join(name, outs[1]) if len(outs) > 1 else None,
    )


def _inside_attention(block: nn.Module, part: str) -> bool:
    """Return whether a linear layer belongs to an attention module.

    Shapes cannot decide: a square output projection looks like a square MLP layer. Every attention
    module of transformers has that word in its class name, which is the module's role, not the
    model's.
    """
    owners = part.split(".")[:-1]
    kinds = (
        type(block.get_submodule(".".join(owners[: end + 1]))).__name__.lower()
        for end in range(len(owners))
    )
    return any("attention" in kind or "attn" in kind for kind in kinds)


def _refuse_experts(name: str, block: nn.Module, hidden: int) -> None:
    experts = [
        part
        for part, parameter in block.named_parameters()
        if parameter.dim() == 3 and len(parameter) > 1 and hidden in parameter.shape
    ]
    if experts:
        shape = tuple(block.get_parameter(experts[0]).shape)
        raise ArchitectureError(
            f"{name}: looked for one MLP down-projection and found a mixture of experts, "
            f"{experts[0]} {shape}; editing experts is not supported, use a dense model"
        )


def _mlp(
    name: str, block: nn.Module, linears: dict[str, nn.Module], hidden: int
) -> tuple[str, list[str]]:
    """Return the MLP down-projection and up-projections among a block's non-attention layers."""
    looked_for = (
        f"one MLP: input projections from width {hidden} and one down-projection back to it"
    )
    writers = [part for part, layer in linears.items() if _sizes(layer)[1] == hidden]
    # An MLP as wide as the hidden state has only square layers, registered in the order of use.
    narrow = [part for part in writers if _sizes(linears[part])[0] != hidden]
    if not writers or len(narrow) > 1:
        raise _unsupported(name, block, looked_for, linears)
    down = narrow[0] if narrow else writers[-1]
    inner = _sizes(linears[down])[0]
    ups = [part for part in linears if part != down]
    # A fused gate has twice the inner width. Anything else (a router, say) is another design.
    fits = [_sizes(linears[up]) in {(hidden, inner), (hidden, 2 * inner)} for up in ups]
    if not ups or not all(fits) or len({part.rpartition(".")[0] for part in linears}) > 1:
        raise _unsupported(name, block, looked_for, linears)
    return down, ups


def _adapted_error(name: str) -> ArchitectureError:
    """Return the error of a projection that is no plain matrix."""
    return ArchitectureError(
        f"{name} carries an adapter (LoRA) of PEFT, so it is no plain matrix; merge it first "
        "(`model.merge_and_unload()`) and edit the model that this returns"
    )


def _unsupported(
    name: str, block: nn.Module, looked_for: str, linears: dict[str, nn.Module]
) -> ArchitectureError:
    shapes = [f"{part} {_sizes(layer)[0]}→{_sizes(layer)[1]}" for part, layer in linears.items()]
    found = ", ".join(shapes[:8]) + (", …" if len(shapes) > 8 else "")
    return ArchitectureError(
        f"{name} ({type(block).__name__}): looked for {looked_for}; found the linear layers "
        f"{found or 'none'}. This architecture is not supported; use a dense transformer"
    )


def _final_norm(stack: nn.Module, name: str) -> nn.Module | None:
    """Return the final norm, a sibling of the block list; embedding norms are known by name."""
    norms = [
        (child_name, child)
        for child_name, child in stack.named_children()
        if "norm" in type(child).__name__.lower() and "emb" not in child_name.lower()
    ]
    if len(norms) > 1:
        listed = ", ".join(child_name for child_name, _ in norms)
        raise ArchitectureError(
            f"looked for the final norm in {name} and found several: {listed}; "
            "this architecture is not supported"
        )
    return norms[0][1] if norms else None
