"""Write path: how a change of a block's down-projection reaches the block's output.

In most models the MLP's output is added to the hidden state as it is. Some scale it first (Granite,
MiniCPM), put a norm between (Gemma 2 and 3, OLMo 2, GLM-4), or norm the sum (the first GPT, OPT of
350M). A method that wants a change of the block's output must then ask its down-projection for
another one. Paths are found by a trial, not by a model's name.

Axis names: ``n`` -- requests; ``d`` -- hidden width; ``t`` -- tokens of the trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.hooks import Side, capture, replace_output
from lightning_edit.models.view import ModelView

#: Largest relative error with which a trial fits a path; bfloat16 rounds to 0.004.
_TOLERANCE = 0.03
#: Tokens of the trial, and the length of its change relative to the block's output: large enough to
#: stand out from the rounding of a half-precision hidden state.
_TOKENS, _LENGTH = 6, 4.0


@dataclass(frozen=True)
class PostNorm:
    """Norm between a down-projection and its block's output: y = w ⊙ k·(s − mean) + b, k = 1/rms.

    Args:
        module: Dotted name of the norm.
        weight: w.
        bias: b.
        centred: Whether the mean is subtracted (LayerNorm).
    """

    module: str
    weight: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    centred: bool

    @classmethod
    def of(cls, name: str, module: nn.Module, like: Float[Tensor, " d"]) -> "PostNorm":
        """Measure w, b and whether the mean is subtracted, on inputs of which the norm is known.

        Args:
            name: Dotted name of the norm.
            module: The norm.
            like: A hidden state: its width, dtype and device.
        """
        signs = torch.ones_like(like)
        signs[1::2] = -1
        rows = torch.stack([signs, -signs, signs + 2])[None]
        plus, minus, shifted = module(rows)[0].double()
        bias = (plus + minus) / 2
        written = plus - bias
        centred = bool((shifted - plus).norm() < 0.1 * written.norm())
        return cls(name, signs.double() * written, bias, centred)

    def free(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return what the norm scales: its input, without the mean if that is subtracted."""
        return inputs - inputs.mean(1, keepdim=True) if self.centred else inputs

    def inverse_rms(
        self, inputs: Float[Tensor, "n d"], outputs: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n 1"]:
        """Return k of inputs whose outputs are known (least squares)."""
        basis = self.weight * self.free(inputs)
        product = (basis * (outputs - self.bias)).sum(1, keepdim=True)
        return product / basis.square().sum(1, keepdim=True).clamp_min(1e-300)

    def fits(self, inputs: Float[Tensor, "n d"], outputs: Float[Tensor, "n d"]) -> bool:
        """Return whether the formula gives the outputs of the norm."""
        predicted = self.weight * self.free(inputs) * self.inverse_rms(inputs, outputs)
        written = outputs - self.bias
        return bool((written - predicted).norm() < _TOLERANCE * written.norm())

    def forward(
        self, inputs: Float[Tensor, "n d"], outputs: Float[Tensor, "n d"], moved: Tensor
    ) -> Float[Tensor, "n d"]:
        """Return the change of the output after a change of the input.

        Args:
            inputs: The norm's inputs.
            outputs: Its outputs.
            moved: The changes of the inputs.
        """
        k, free, after = self.inverse_rms(inputs, outputs), self.free(inputs), inputs + moved
        epsilon = (k**-2 - free.square().mean(1, keepdim=True)).clamp_min(0)
        after = self.free(after)
        k_after = (after.square().mean(1, keepdim=True) + epsilon).rsqrt()
        change: Tensor = self.weight * (after * k_after - free * k)
        return change

    def inverse(
        self, inputs: Float[Tensor, "n d"], outputs: Float[Tensor, "n d"], wanted: Tensor
    ) -> Float[Tensor, "n d"]:
        """Return the change of the input after which the output is closest to a wanted one.

        A norm's outputs lie on an ellipsoid, so only the direction can be had. The input keeps its
        length, and entries with a weight of zero their values.

        Args:
            inputs: The norm's inputs.
            outputs: Its outputs.
            wanted: The wanted changes of the outputs.
        """
        k, free = self.inverse_rms(inputs, outputs), self.free(inputs)
        live: Bool[Tensor, " d"] = self.weight.abs() > 1e-6 * self.weight.abs().max()
        weight = torch.where(live, self.weight, 1.0)
        aimed = self.free(free * k + torch.where(live, wanted / weight, 0.0))
        length = free.norm(dim=1, keepdim=True) / aimed.norm(dim=1, keepdim=True).clamp_min(1e-300)
        change: Tensor = aimed * length - free
        return change

    def partway(
        self, inputs: Float[Tensor, "n d"], moved: Tensor, part: float
    ) -> Float[Tensor, "n d"]:
        """Return a part of changes of the input that keep its length, on the arc between.

        Args:
            inputs: The norm's inputs.
            moved: The changes.
            part: The part of the way.
        """
        free = self.free(inputs)
        there = free + part * moved
        length = free.norm(dim=1, keepdim=True) / there.norm(dim=1, keepdim=True).clamp_min(1e-300)
        change: Tensor = there * length - free
        return change


@dataclass(frozen=True)
class WritePath:
    """Path of a change Δ from a down-projection to its block's output: c·(N(s + aΔ) − N(s)).

    Args:
        block: Dotted name of the block.
        scale: c.
        norm: N; ``None``: the change arrives as it is, times c.
        inner: a.
    """

    block: str
    scale: float = 1.0
    norm: PostNorm | None = None
    inner: float = 1.0

    @property
    def is_direct(self) -> bool:
        """Whether a change reaches the block's output unchanged."""
        return self.norm is None and self.scale == 1.0

    @property
    def wanted(self) -> dict[str, Side]:
        """Modules whose input and output are the ``state`` of the other methods; often none."""
        return {} if self.norm is None else {self.norm.module: "both"}

    def to_block(
        self, change: Float[Tensor, "n d"], state: Mapping[str, Tensor]
    ) -> Float[Tensor, "n d"]:
        """Return what changes of the down-projection's output change in the block's output.

        Args:
            change: The changes.
            state: What was read of :attr:`wanted` at the same tokens, in float64.
        """
        if self.norm is None:
            return change if self.scale == 1.0 else change * self.scale
        inputs, outputs = _sides(self.norm, state)
        return self.scale * self.norm.forward(inputs, outputs, self.inner * change)

    def from_block(
        self, change: Float[Tensor, "n d"], state: Mapping[str, Tensor]
    ) -> Float[Tensor, "n d"]:
        """Return the changes of the down-projection's output that best give those of the block's.

        Args:
            change: Wanted changes of the block's output.
            state: What was read of :attr:`wanted` at the same tokens, in float64.
        """
        if self.norm is None:
            return change if self.scale == 1.0 else change / self.scale
        inputs, outputs = _sides(self.norm, state)
        return self.norm.inverse(inputs, outputs, change / self.scale) / self.inner

    def share(
        self, change: Float[Tensor, "n d"], divisor: float, state: Mapping[str, Tensor]
    ) -> Float[Tensor, "n d"]:
        """Return the share of a change of the block's output that a lower layer is to write.

        Without a norm it is the change, divided. With one it is all but what this block can write
        part of the way to the change: the rest of a straight way would lie inside the ellipsoid.

        Args:
            change: Wanted changes of the block's output.
            divisor: Number of shares.
            state: What was read of :attr:`wanted` at the same tokens, in float64.
        """
        if self.norm is None:
            return change / divisor
        inputs, outputs = _sides(self.norm, state)
        whole = self.norm.inverse(inputs, outputs, change / self.scale)
        rest = self.norm.partway(inputs, whole, 1 - 1 / divisor)
        return change - self.scale * self.norm.forward(inputs, outputs, rest)


def _sides(norm: PostNorm, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return state[f"{norm.module}@input"], state[f"{norm.module}@output"]


@torch.no_grad()
def find_write_paths(view: ModelView, blocks: Sequence[int]) -> dict[int, WritePath]:
    """Find the write paths of blocks, by adding a vector to each one's down-projection.

    Args:
        view: The language model's structure.
        blocks: Block indices.

    Returns:
        A path for every block.

    Raises:
        ArchitectureError: If something else than a factor and a norm lies between.
    """
    device = view.embeddings.get_parameter("weight").device
    vocabulary = len(view.embeddings.get_parameter("weight"))
    ids = torch.linspace(vocabulary // 4, vocabulary // 2, _TOKENS, device=device).long()[None]
    wanted = {block: _modules_on_the_way(view, block) for block in blocks}
    every: dict[str, Side] = {}
    for own in wanted.values():
        every |= own
    with capture(view.model, every) as before:
        view.model(input_ids=ids, use_cache=False)
    return {block: _try_block(view, block, wanted[block], ids, dict(before)) for block in blocks}


def _modules_on_the_way(view: ModelView, block: int) -> dict[str, Side]:
    """Return a block's down-projection and output, and its norms, which may lie between."""
    parts = view.block(block)
    norms = [
        f"{parts.name}.{name}"
        for name, module in parts.module.named_modules()
        if "norm" in type(module).__name__.lower() and not any(True for _ in module.children())
    ]
    wanted: dict[str, Side] = dict.fromkeys(norms, "both")
    return wanted | {parts.mlp_down: "output", parts.name: "output"}


def _try_block(
    view: ModelView, block: int, wanted: dict[str, Side], ids: Tensor, before: dict[str, Tensor]
) -> WritePath:
    parts = view.block(block)
    now = before[parts.name]
    generator = torch.Generator().manual_seed(0)
    added = torch.randn(now.shape[2], generator=generator).to(now.device, torch.float32)
    added = added / added.norm() * _LENGTH * now[0, -1].float().norm()

    def add(output: Tensor) -> Tensor:
        moved = output.clone()
        moved[:, -1] += added.to(output.device, output.dtype)
        return moved

    down = view.model.get_submodule(parts.mlp_down)
    called: dict[str, Side] = {
        name: side for name, side in wanted.items() if name in before or f"{name}@output" in before
    }
    with (
        replace_output(down, add, within=view.model),
        capture(view.model, called, stop=True) as after,
    ):
        view.model(input_ids=ids, use_cache=False)

    def change(key: str) -> Tensor:
        return (after[key][0, -1].double() - before[key][0, -1].double()).cpu()

    vector, block_change = change(parts.mlp_down), change(parts.name)
    scale, fits = _scaled(block_change, vector)
    if fits:
        # A factor within rounding of one is one, so that nothing is divided by it.
        return WritePath(parts.name, 1.0 if abs(scale - 1) < _TOLERANCE / 3 else scale)
    for key in (name for name, side in called.items() if side == "both"):
        if before[f"{key}@input"].shape != now.shape:
            continue
        inner, enters = _scaled(change(f"{key}@input"), vector)
        outer, leaves = _scaled(block_change, change(f"{key}@output"))
        if not (enters and leaves):
            continue
        norm = PostNorm.of(key, view.model.get_submodule(key), before[f"{key}@input"][0, -1])
        inputs, outputs = (before[f"{key}@{side}"][0].double() for side in ("input", "output"))
        if norm.fits(inputs, outputs):
            return WritePath(parts.name, outer, norm, inner)
    between = ", ".join(name for name, side in called.items() if side == "both") or "no norm"
    raise ArchitectureError(
        f"{parts.name} ({type(parts.module).__name__}): expected the change of {parts.mlp_down} to "
        f"reach the block's output through a factor and at most one norm, got another function of "
        f"it (norms of the block: {between}); use a method that aims at the MLP's output, such as "
        "ROME or RROME"
    )


def _scaled(change: Tensor, vector: Tensor) -> tuple[float, bool]:
    """Return the factor between a change and a vector, and whether it explains the change."""
    squared = float(vector @ vector)
    factor = float(change @ vector) / squared if squared > 0 else 0.0
    rest = (change - factor * vector).norm()
    return factor, factor != 0 and bool(rest < _TOLERANCE * change.norm())
