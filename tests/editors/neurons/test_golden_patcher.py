"""Training of T-Patcher's neurons against the authors' editor, on a tiny BERT and tiny BARTs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertModel

from lightning_edit.editors.neurons.patch import Patch, PatchObjective, PatchSchedule, patch_step
from lightning_edit.functional.patch_losses import MARGINS, smoothed_nll
from tests.editors.golden import Golden, golden

TOLERANCE = {"float32": 1e-4, "float64": 1e-7}
NAMES = {"K": "key", "b_p": "bias", "V_raw": "raw", "a": "scale"}
Loss = Callable[[Patch], Tensor]


def loaded(model: nn.Module, example: Golden, prefix: str) -> nn.Module:
    own = {n.removeprefix(prefix): v for n, v in example.tensors.items() if n.startswith(prefix)}
    missing, _ = model.to(next(iter(own.values())).dtype).load_state_dict(own, strict=False)
    assert not [
        name for name in missing if "position_ids" not in name and "embed_tokens" not in name
    ]
    return model.eval().requires_grad_(False)


def config(example: Golden) -> dict[str, Any]:
    return {k: v for k, v in example.meta["model_config"].items() if not k.startswith("_")}


@contextmanager
def beside(up: nn.Module, down: nn.Module, patch: Patch) -> Iterator[None]:
    seen: list[Tensor] = []
    handles = [
        up.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        down.register_forward_hook(lambda *call: call[2] + patch.added(seen[-1], nn.GELU())),
    ]
    yield
    for handle in handles:
        handle.remove()


def bart_loss(example: Golden) -> Loss:
    model: Any = loaded(
        BartForConditionalGeneration(BartConfig(**config(example))), example, "model."
    )
    edit = {n.removeprefix("edit."): v for n, v in example.tensors.items() if "edit." in n}
    targets, real = edit["trg_input_ids"][:, 1:], edit["trg_attention_mask"][:, 1:].bool()
    layer = model.model.decoder.layers[5]

    def loss(patch: Patch) -> Tensor:
        with beside(layer.fc1, layer.fc2, patch):
            logits = model(
                input_ids=edit["src_input_ids"],
                attention_mask=edit["src_attention_mask"],
                decoder_input_ids=edit["trg_input_ids"][:, :-1],
                decoder_attention_mask=edit["trg_attention_mask"][:, :-1],
                use_cache=False,
            ).logits
        return smoothed_nll(logits[real], targets[real], 0.1).sum() / real.sum()

    return loss


def bert_loss(example: Golden) -> Loss:
    model: Any = loaded(BertModel(BertConfig(**config(example))), example, "model.model.")
    edit = {n.removeprefix("edit."): v for n, v in example.tensors.items() if "edit." in n}
    head = [example.tensors[f"model.classifier.{one}"] for one in ("weight", "bias")]
    layer = model.encoder.layer[11]

    def loss(patch: Patch) -> Tensor:
        with beside(layer.intermediate.dense, layer.output.dense, patch):
            pooled = model(
                input_ids=edit["src_input_ids"], attention_mask=edit["src_attention_mask"]
            ).pooler_output
        logit = nn.functional.linear(pooled, *head).flatten()
        p = logit.sigmoid()
        entropy = nn.functional.binary_cross_entropy(p, p)
        bce = nn.functional.binary_cross_entropy_with_logits(logit, edit["labels"].to(logit))
        return bce - 0.1 * entropy

    return loss


def trained(example: Golden, edit_loss: Loss, steps: int) -> tuple[Patch, list[list[float]]]:
    settings, stored = example.meta["settings"], example.tensors
    own = stored["init_hidden"]
    patch = Patch(own, 10.0, torch.Generator().manual_seed(0)).to(own)
    with torch.no_grad():
        assert torch.allclose(patch.key, stored["before.K"])
        assert torch.equal(patch.scale, stored["before.a"])
        for theirs, ours in NAMES.items():
            getattr(patch, ours).copy_(stored[f"before.{theirs}"])
    objective = PatchObjective(MARGINS[settings["path"]], 1.0, float(settings["mlc"]))
    schedule = PatchSchedule()
    optimizer, trace = schedule.optimizer(patch), []
    for _ in range(steps):
        edit = edit_loss(patch)
        activation, silence = objective.parts(patch, own, stored["memory.train"])
        total = edit + activation + settings["mlc"] * silence
        norm = patch_step(patch, optimizer, total, schedule.clip)
        trace.append([edit.item(), activation.item(), silence.item(), total.item(), norm])
    return patch, trace


def assert_same(patch: Patch, example: Golden, after: int, tolerance: float) -> None:
    for theirs, ours in NAMES.items():
        wanted = example.tensors[f"after_{after}.{theirs}"]
        difference = (getattr(patch, ours).detach() - wanted).abs().max()
        assert difference <= tolerance * wanted.abs().max(), theirs


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("path", ["fever", "zsre_1neuron"])
def test_twenty_steps_are_the_authors(path: str, dtype: str) -> None:
    example = golden(f"T_PATCHER/optim_{path}-{dtype}")
    edit_loss = bert_loss(example) if path == "fever" else bart_loss(example)
    patch, trace = trained(example, edit_loss, 20)
    assert_same(patch, example, 20, TOLERANCE[dtype])
    names = ("L_e", "L_a", "L_m", "total", "grad_norm")
    theirs = torch.stack([example.tensors[f"trace.{name}"] for name in names], 1).double()
    ours = torch.tensor(trace, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=10 * TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_several_neurons_agree_up_to_ties_at_the_first_step() -> None:
    # All neurons begin with one activation, so which of them is the worst is a matter of rounding.
    example = golden("T_PATCHER/optim_zsre-float64")
    edit_loss = bart_loss(example)
    assert_same(trained(example, edit_loss, 1)[0], example, 1, 1e-4)
    patch, _ = trained(example, edit_loss, 20)
    for theirs, tolerance in (("K", 1e-1), ("b_p", 3e-2), ("V_raw", 2e-2), ("a", 1e-4)):
        wanted = example.tensors[f"after_20.{theirs}"]
        difference = (getattr(patch, NAMES[theirs]).detach() - wanted).abs().max()
        assert difference <= tolerance * wanted.abs().max(), theirs
