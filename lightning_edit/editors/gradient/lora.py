"""LoRA (low-rank adaptation): Hu et al., LoRA, ICLR 2022, arXiv 2106.09685; editor in EasyEdit.

Axis names: ``n`` -- requests.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_edit.editors.auto_rate import rate_for
from lightning_edit.editors.base import Editor
from lightning_edit.editors.gradient.base import mini_batches
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.models.view import ModelView
from lightning_edit.types import EditBatch, Encoded

#: Names of the projections to queries and values, alone or with that to keys in one layer.
_QUERY_AND_VALUE = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q", "v"),
    ("qkv_proj",),
    ("query_key_value",),
)
_ADAPTER = "edit"
#: ``lr="auto"``: share of the loss that the first step takes from it, to first order. A fifth of
#: fine-tuning's: adapters in all blocks change the answers to other prompts sooner.
STEP_REACH = 0.02


class LoRAEdit(Editor):
    r"""LoRA fine-tuning on the edits, with the merged adapters as a low-rank update.

    :math:`\Delta = \frac{\alpha}{r} B A`, trained with ``peft`` on the answer tokens while the
    model's own weights are frozen.

    Args:
        layers: Blocks with adapters; ``None``: all. With two stacks the decoder's.
        targets: Last name components of the adapted linear layers, such as ``q_proj``; ``None``:
            the defaults of ``peft`` for the model type (mostly queries and values), and queries
            and values of a type that it does not list.
        rank: r (8 in EasyEdit's configs).
        alpha: α (32 in EasyEdit's configs).
        dropout: Adapter dropout during training. EasyEdit's configs have 0.1, but its code does not
            say whether the model is in training mode.
        steps: Epochs over the batch (50 to 70 in EasyEdit's configs).
        lr: Adam's learning rate (5e-3 in EasyEdit's configs). ``auto``: for each batch the rate at
            which the first step takes, to first order, :data:`STEP_REACH` of the loss.
        threshold: Mean loss below which training ends. 0: never, as in EasyEdit.
        batch_size: Requests per optimiser step.

    Note:
        Adapters in all blocks change answers to other prompts. With the defaults 19 of 20 facts are
        written in one batch, of the embedded model and of a GPT-2 of 6 blocks, and 0.69 and 0.50 of
        their neighbours answer as before; at EasyEdit's rate without an end 18 and 19, and 0.24 and
        0.15.

        In sequential editing every edit trains new adapters on the current model. EasyEdit's
        configs mostly name AdaLoRA, but never let it allocate ranks, which leaves LoRA with an
        orthogonality penalty; this is plain LoRA.
    """

    both_forms: ClassVar[bool] = True
    architectures: ClassVar[tuple[str, ...]] = ("decoder-only", "encoder-decoder")

    def __init__(
        self,
        layers: list[int] | None = None,
        targets: list[str] | None = None,
        rank: int = 8,
        alpha: int = 32,
        dropout: float = 0.0,
        steps: int = 60,
        lr: float | Literal["auto"] = "auto",
        threshold: float = 1e-2,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        if min(rank, steps, batch_size) < 1 or (lr != "auto" and lr <= 0):
            raise ValueError(
                "LoRA needs rank, steps and batch_size of at least 1 and lr auto or > 0, got "
                f"rank={rank}, steps={steps}, batch_size={batch_size}, lr={lr}"
            )
        self.layers = layers
        self.targets = targets
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.steps = steps
        self.lr: float | Literal["auto"] = lr
        self.threshold = threshold
        self.batch_size = batch_size

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layers, all blocks."""
        return list(range(num_blocks))

    def on_bind(self) -> None:
        """Check that the model has linear layers to adapt."""
        self.adapted_modules()

    def adapted_modules(self) -> list[str]:
        """Return the dotted names of the linear layers that get LoRA adapters.

        Raises:
            ArchitectureError: If no layer of the chosen blocks has one of the names.
        """
        given = self.layers
        layers = self.default_layers(self.view.num_blocks) if given is None else sorted(given)
        linear = [
            f"{block.name}.{name}"
            for block in map(self.view.block, layers)
            for name, module in block.module.named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
        ]
        names = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
        leaves = self.targets
        if leaves is None:
            leaves = _default_targets(self.language_model.config.model_type, names)
        found = [name for name in linear if name.rpartition(".")[2] in leaves]
        if not found:
            unknown = f"no linear layer of blocks {layers} is named {' or '.join(leaves)}"
            if not leaves:
                kind = self.language_model.config.model_type
                unknown = f"which layers of a model of type {kind!r} LoRA should adapt is not known"
            raise ArchitectureError(
                f"{unknown}; give `targets`, some of {', '.join(names) or '(no linear layer)'}"
            )
        return found

    def edit(self, batch: EditBatch) -> Delta:
        """Train LoRA adapters on the batch.

        Args:
            batch: The requests.

        Returns:
            Low-rank updates, the factors of the adapters.
        """
        model, names = self.language_model, self.adapted_modules()
        cuda = [model.device] if model.device.type == "cuda" else []
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=cuda),
            self._attached_adapters(names) as adapted,
        ):
            torch.manual_seed(batch.seed)
            for layer in adapted.values():
                layer.reset_lora_parameters(_ADAPTER, init_lora_weights=True)
            with self.stage("search"):
                losses = self._train(batch.encoded, adapted)
            updates = {f"{name}.weight": _merged_update(layer) for name, layer in adapted.items()}
        info = {"loss": losses, "steps": len(losses)} | self.chosen_info()
        return Delta(batch.ids, updates, info=info)

    @contextmanager
    def _attached_adapters(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """Attach float32 LoRA adapters to the model inside a ``with`` block, then remove them."""
        from peft import LoraConfig, LoraModel  # a slow import that only this editor needs

        model = self.language_model
        trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=names,
            fan_in_fan_out=isinstance(model.get_submodule(names[0]), Conv1D),
        )
        configured_before = "peft_config" in vars(model)
        tuner = LoraModel(model, config, _ADAPTER)
        try:
            adapted = {name: model.get_submodule(name) for name in names}
            for layer in adapted.values():
                for parameter in layer.parameters():
                    if parameter.requires_grad:
                        wide = torch.promote_types(parameter.dtype, torch.float32)
                        parameter.data = parameter.data.to(wide)
                layer.lora_dropout.train()
            yield adapted
        finally:
            tuner.unload()
            if not configured_before:
                vars(model).pop("peft_config", None)  # older versions of PEFT leave it there
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(trained[name])

    def _train(self, encoded: Sequence[Encoded], adapted: dict[str, Any]) -> list[float]:
        parameters = [
            parameter
            for layer in adapted.values()
            for parameter in layer.parameters()
            if parameter.requires_grad
        ]
        rate = self._step_size(encoded, parameters) if self.lr == "auto" else self.lr
        optimizer = torch.optim.Adam(parameters, lr=rate)
        losses: list[float] = []
        for step in range(self.steps):
            self.progress(step, self.steps)
            total = 0.0
            rows = 0
            for part in mini_batches(encoded, self.batch_size):
                loss = self._loss(part).mean()
                total, rows = total + loss.item() * len(part), rows + len(part)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
            losses.append(total / rows)
            if losses[-1] < self.threshold:
                break
        self.progress(self.steps, self.steps)
        return losses

    def _step_size(self, encoded: Sequence[Encoded], parameters: Sequence[Tensor]) -> float:
        """Return the rate of ``auto``: B is zero at the start, so B alone is moved at first."""
        part = next(mini_batches(encoded, self.batch_size))
        loss = self._loss(part).mean()
        return rate_for(self, loss, parameters, STEP_REACH)

    def _loss(self, encoded: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """Return the mean cross-entropy over the answer tokens of each request."""
        model = self.language_model
        pairs = [(item.prompt_ids, self.prompts.labels(model, item.target_ids)) for item in encoded]
        rows = AnswerRows.of(model, pairs)
        logits = answer_logits(self.language_model, rows)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = nn.functional.cross_entropy(logits, rows.targets, reduction="none")
        return rows.per_row(nll)

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: two adapters per block, their gradients and Adam's moments."""
        return 4 * 4 * len(layers) * 2 * 8 * 2 * view.hidden_size


def _merged_update(layer: Any) -> LowRank:
    """Return the low-rank update of a layer's adapter, (d_out, d_in) also for Conv1D."""
    A, B = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    return LowRank((B.detach() * layer.scaling[_ADAPTER]).float(), A.detach().float())


def _default_targets(model_type: str, names: Sequence[str]) -> list[str]:
    """Return the default LoRA target modules of ``peft`` for a model type.

    Of a type that it does not list (mBART, Pegasus), or lists by a pattern of names, the
    projections to queries and values, which are its defaults for most types.

    Args:
        model_type: Type of the model's config.
        names: Last names of the linear layers in its blocks.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as MAPPING

    given = MAPPING.get(model_type, [])  # of some types a pattern of whole names
    listed = [] if isinstance(given, str) else [one for one in given if isinstance(one, str)]
    choices = (listed, *_QUERY_AND_VALUE)
    return next((list(found) for found in choices if set(found) & set(names)), listed)
