"""Parity with the authors' own KE: the network, whole training steps on BART, the port's edit.

BART has two stacks, which the editor does not edit; its steps are made of the same parts here.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import BartConfig, BartForConditionalGeneration

from lightning_edit.editors.hypernetwork.dual_ascent import (
    Constraint,
    Lagrangian,
    centred_rmsprop,
)
from lightning_edit.editors.hypernetwork.ke import KE
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.functional.conditioned_shift import (
    Shift,
    ShiftHead,
    TextCondition,
    label_smoothed_nll,
    linear_warmup_decay,
    low_rank_shift,
    root_mean_square,
)
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.types import EditRequest
from tests.editors import golden as files
from tests.editors.golden import Golden, golden, model, tokenizer

#: Largest relative distances: outputs, gradients, changes of parameters.
LIMITS = {"float32": (1e-4, 1e-3, 2e-3), "float64": (1e-8, 1e-8, 1e-6)}
each = pytest.mark.parametrize("dtype", LIMITS)


def dense(shift: Shift, gradient: Tensor, scale: float) -> Tensor:
    """The update as it stands in the paper, without factors."""
    mask = shift.mask_row.softmax(-1).mT @ shift.mask_column
    return (
        scale
        * shift.gate.sigmoid()
        * (gradient * mask + shift.add_row.softmax(-1).mT @ shift.add_column)
    )


class Learner(nn.Module):
    """The editor's networks with the parameters of the authors' learner, by their names."""

    def __init__(self, state: dict[str, Tensor], weights: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        table = state["condition.embedding.weight"]
        wide = state["condition.linear._linear_layers.0.weight"]
        condition, hidden = wide.shape[0], wide.shape[1] // 2
        self.reader = TextCondition(table, hidden, condition)
        self.heads = nn.ModuleList(ShiftHead(condition, hidden, *s) for s in weights.values())
        self.names = list(weights)
        self.to(table.dtype)
        own = {}
        for name, value in state.items():
            new = name.replace("condition.embedding.weight", "reader.embedding")
            new = new.replace("condition.lstm._module.", "reader.lstm.")
            new = new.replace("condition.linear._linear_layers.0.", "reader.linear.")
            for number, weight in enumerate(self.names):
                stem = f"conditioners.{weight.replace('.', '_')}_conditioner.conditioners."
                new = new.replace(f"{stem}0.", f"heads.{number}.first.")
                new = new.replace(f"{stem}2.", f"heads.{number}.last.")
            own[new] = value
        self.load_state_dict(own)
        self.theirs = dict(zip(own, state, strict=True))

    def shifts(self, ids: Tensor, mask: Tensor) -> dict[str, Shift]:
        condition = self.reader(ids, mask.sum(1))
        return {name: head(condition) for name, head in zip(self.names, self.heads, strict=True)}


def learner(example: Golden, prefix: str, shapes: dict[str, tuple[int, ...]]) -> Learner:
    stored = {
        name.removeprefix(prefix): value
        for name, value in example.tensors.items()
        if name.startswith(prefix) and "c_vector" not in name
    }
    return Learner(stored, shapes)


def assert_gradients(own: Learner, example: Golden, prefix: str, limit: float) -> None:
    for name, parameter in own.named_parameters():
        wanted = example.tensors[prefix + own.theirs[name]]
        got = parameter.grad
        assert got is not None
        if name == "reader.embedding":  # the authors' padding row has no gradient
            got, wanted = got[1:], wanted[1:]
        assert relative(got, wanted) < limit, name


def relative(ours: Tensor, theirs: Tensor) -> float:
    return files.relative(ours.detach(), theirs)


@each
def test_the_network_and_its_update_agree(dtype: str) -> None:
    example = golden(f"KE/learner-{dtype}")
    outputs, gradients, _ = LIMITS[dtype]
    tensors = example.tensors
    shapes = {name: tuple(tensors[f"grad_in.{name}"].shape) for name in ("a_weight", "b_weight")}
    own = learner(example, "param.", shapes)
    ids, mask = tensors["cond.input_ids"], tensors["cond.attention_mask"]
    assert relative(own.reader.state(ids, mask.sum(1)), tensors["lstm_state"]) < outputs
    assert relative(own.reader(ids, mask.sum(1)), tensors["condition"]) < outputs
    loss = torch.zeros(())
    for name, shift in own.shifts(ids, mask).items():
        assert relative(torch.cat(shift, -1), tensors[f"head_out.{name}"]) < outputs
        gradient = tensors[f"grad_in.{name}"]
        update = dense(shift, gradient, 1.0)
        assert relative(update, tensors[f"delta.{name}"]) < outputs
        # Any factors of the gradient give the same update.
        left, right = low_rank_shift(shift, torch.eye(len(gradient)).to(gradient), gradient, 1.0)
        assert relative(left @ right, tensors[f"delta.{name}"]) < outputs
        wanted = update.detach().square().mean().sqrt()
        assert relative(root_mean_square(left, right), wanted) < outputs
        loss = loss + (left @ right * tensors[f"probe.{name}"]).sum()
    loss.backward()
    # The vector's part of the loss is not in ours, so shared parameters are not compared.
    for name, parameter in own.heads.named_parameters():
        wanted = tensors["param_grad." + own.theirs[f"heads.{name}"]]
        assert relative(parameter.grad, wanted) < gradients  # type: ignore[arg-type]


def tiny_bart(example: Golden) -> Any:
    options = dict(example.meta["settings"]["bart_config"])
    bart = BartForConditionalGeneration(BartConfig(**options, dropout=0.0))
    bart = bart.to(getattr(torch, example.meta["dtype"])).eval()
    state = {
        name.removeprefix("model."): value
        for name, value in example.tensors.items()
        if name.startswith("model.")
    }
    missing, unexpected = bart.load_state_dict(state, strict=False)
    assert not unexpected
    other = ("final_logits_bias", "lm_head.weight")
    assert all("embed" in name or name in other for name in missing)
    bart.tie_weights()
    return bart.requires_grad_(False)


def run_bart(bart: Any, batch: dict[str, Tensor], values: dict[str, Tensor], rows: slice) -> Tensor:
    inputs = {
        "input_ids": batch["src_input_ids"][rows],
        "attention_mask": batch["src_attention_mask"][rows],
        "decoder_input_ids": batch["trg_input_ids"][rows, :-1],
        "decoder_attention_mask": batch["trg_attention_mask"][rows, :-1],
        "use_cache": False,
    }
    logits: Tensor = functional_call(bart, values, kwargs=inputs).logits
    return logits


@each
def test_training_steps_agree(dtype: str) -> None:
    """Gradient fed in, update, losses, gradients, both RMSprops, multipliers: three whole steps."""
    example = golden(f"KE/bart-steps-{dtype}")
    outputs, gradients, changes = LIMITS[dtype]
    settings, tensors = example.meta["settings"], example.tensors
    bart = tiny_bart(example)
    shapes = {name: tuple(bart.get_parameter(name).shape) for name in example.meta["edited"]}
    own = learner(example, "param_before.", shapes)
    kind = getattr(torch, dtype)
    constraints = Lagrangian(
        {
            name: Constraint(settings[f"margin_{name}_max"], settings[f"margin_{name}_min"])
            for name in ("kl", "lp")
        }
    ).to(kind)
    optimizers = [
        centred_rmsprop(list(own.parameters()), settings["lr"]),
        centred_rmsprop(list(constraints.parameters()), settings["lr_alpha"]),
    ]
    rates = {"warmup": settings["warmup_updates"], "total": settings["total_num_updates"]}
    factor = partial(linear_warmup_decay, **rates)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, factor) for one in optimizers]
    for record in example.meta["steps_log"]:
        step = f"step{record['step']}."
        batch = {
            name.removeprefix(f"{step}batch."): value
            for name, value in tensors.items()
            if name.startswith(f"{step}batch.")
        }
        mask = batch["trg_attention_mask"][:, 1:].bool()
        targets = batch["trg_input_ids"][:, 1:]

        run = partial(run_bart, bart, batch)
        rows = len(mask) - 1 - settings["use_views"]  # locality items; then the edit and its view
        edit = slice(rows, rows + 1)
        values = {n: bart.get_parameter(n).clone().requires_grad_() for n in own.names}
        told = run(values, edit)[mask[edit]]
        loss = label_smoothed_nll(told, targets[edit][mask[edit]], 0.0)
        fed = dict(zip(own.names, torch.autograd.grad(loss, list(values.values())), strict=True))
        shifts = own.shifts(batch["cond_input_ids"], batch["cond_attention_mask"])
        scale = float(settings["max_scale"])
        updates = {name: dense(shift, fed[name], scale) for name, shift in shifts.items()}
        for name in own.names:
            if f"{step}grad_in.{name}" in tensors:
                assert relative(fed[name], tensors[f"{step}grad_in.{name}"]) < gradients
                assert relative(updates[name], tensors[f"{step}delta.{name}"]) < outputs
        values = {name: bart.get_parameter(name) + update for name, update in updates.items()}
        after = run(values, slice(None))
        before = run({}, slice(0, rows))
        assert relative(after[mask], tensors[f"{step}logits_edited"][mask]) < outputs
        kept = mask[:rows]
        old, new = before[kept].log_softmax(-1), after[:rows][kept].log_softmax(-1)
        kl = nn.functional.kl_div(new, old, log_target=True, reduction="sum") / kept.sum()
        size = torch.stack([update.square().mean().sqrt() for update in updates.values()]).mean()
        told, wanted = after[rows:][mask[rows:]], targets[rows:][mask[rows:]]
        nll = label_smoothed_nll(told, wanted, settings["eps"])
        total = nll + constraints.term("kl", kl) + constraints.term("lp", size)
        for name, value in {"cr": nll, "kl": kl, "lp": size, "loss": total}.items():
            assert float(value.detach()) == pytest.approx(record[name], rel=outputs), name
        for one in optimizers:
            one.zero_grad()
        total.backward()
        if record["step"] == 1:
            assert_gradients(own, example, f"{step}param_grad.", gradients)
        # The authors' padding row, a real token here, is never trained.
        own.reader.embedding.grad[0] = 0
        constraints.before_step()
        if record["step"] > 1:
            assert [one.param_groups[0]["lr"] for one in optimizers] == pytest.approx(record["lr"])
        for one, schedule in zip(optimizers, schedules, strict=True):
            one.step()
            schedule.step()
        constraints.after_step()
        for name in ("kl", "lp"):
            alpha, wanted_grad = constraints[name].alpha, record[f"alpha_{name}_grad_after_hook"]
            assert float(alpha.grad) == pytest.approx(wanted_grad, rel=gradients)
            risen = record[f"alpha_{name}_after"]
            assert float(alpha.detach()) == pytest.approx(risen, rel=changes)
    for name, parameter in own.named_parameters():
        theirs = own.theirs[name]
        start, end = (tensors[f"{when}.{theirs}"] for when in ("param_before", "param_after_step3"))
        assert relative(parameter.detach() - start, end - start) < changes, name


@each
def test_the_ports_edit_agrees(dtype: str) -> None:
    """MEND's port on GPT-2: condition, gradient, update in its orientation, logits."""
    example = golden(f"KE/efk-tiny-gpt2-{dtype}")
    outputs, gradients, _ = LIMITS[dtype]
    tensors, settings = example.tensors, example.meta["settings"]
    bound, tokens = model("tiny-gpt2", getattr(torch, dtype)), tokenizer("tiny-gpt2")
    condition, _, prompt = settings["condition"].partition(" || ")
    old, _, new = condition.partition(" >> ")
    inner = settings["inner_params"]
    modules = [name.removesuffix(".weight") for name in inner]
    editor: Any = KE(hidden=4, condition=4, modules=modules)
    batch = encode_batch(tokens, [EditRequest("0", prompt, new, old_target=old)])
    editor.bind(bound, tokens)
    assert editor.condition_texts(batch) == [settings["condition"]]
    assert tokens(settings["condition"])["input_ids"] == tensors["cond.input_ids"][0].tolist()
    (encoded,) = batch.encoded
    assert [*encoded.prompt_ids, *encoded.target_ids] == tensors["edit.input_ids"][0].tolist()
    stored = {"condition.embedding.weight": bound.transformer.wte.weight.detach()}
    for name, value in tensors.items():
        if name.startswith("param."):
            stored[name.removeprefix("param.")] = value
    # Rows of the stored matrix are inputs here, since the port does not turn GPT-2's weights.
    shapes = {name: tuple(bound.get_parameter(name).shape) for name in inner}
    own = Learner(stored, shapes)
    ids, mask = tensors["cond.input_ids"], tensors["cond.attention_mask"]
    assert relative(own.reader(ids, mask.sum(1)), tensors["condition"]) < outputs
    rows = [(encoded.prompt_ids, encoded.target_ids)]
    _, factors = token_factors(bound, rows, modules, each=True)
    updates = {}
    for name, shift in own.shifts(ids, mask).items():
        inputs, outward = (part[0] for part in factors[name.removesuffix(".weight")])
        assert relative(inputs.mT @ outward, tensors[f"grad_in.{name}"]) < gradients
        left, right = low_rank_shift(shift, inputs, outward, 1.0)
        assert relative((left @ right).detach(), tensors[f"delta.{name}"]) < outputs
        updates[name] = (left @ right).detach()
    tokens_in = tensors["edit.input_ids"]
    values = {name: bound.get_parameter(name) + update for name, update in updates.items()}
    assert relative(bound(tokens_in).logits, tensors["logits_before"]) < outputs
    after = functional_call(bound, values, (tokens_in,)).logits
    assert relative(after, tensors["logits_after"]) < outputs


def test_the_editors_update_is_the_networks() -> None:
    """In the editor's orientation rows are outputs, whatever the model stores."""
    bound, tokens = model("tiny-gpt2"), tokenizer("tiny-gpt2")
    name = "transformer.h.2.mlp.c_fc"
    editor: Any = KE(hidden=6, condition=8, modules=[name], max_scale=3.0).bind(bound, tokens)
    fact = EditRequest("0", "The capital of France is", "Rome", old_target="Paris")
    batch = encode_batch(tokens, [fact])
    update = editor.propose_each(batch)[0].weights[f"{name}.weight"]
    assert isinstance(update, LowRank)
    ids = tokens("Paris >> Rome || The capital of France is", return_tensors="pt").input_ids
    shift = editor.heads[0](editor.reader(ids, torch.tensor([ids.shape[1]])))
    text = torch.tensor([[*batch.encoded[0].prompt_ids, *batch.encoded[0].target_ids]])
    weight = bound.get_parameter(f"{name}.weight").requires_grad_()
    logits = bound(text).logits[0, len(batch.encoded[0].prompt_ids) - 1 : -1]
    nll = nn.functional.cross_entropy(logits, torch.tensor(batch.encoded[0].target_ids))
    (gradient,) = torch.autograd.grad(nll, weight)
    wanted = dense(shift, gradient.mT, 3.0)
    assert wanted.shape == (512, 128)
    assert relative(update.dense().detach(), wanted.detach()) < 1e-4
    assert Delta(("0",), {f"{name}.weight": update}).not_finite() == []
