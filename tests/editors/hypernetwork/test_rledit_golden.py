"""RLEdit: the authors' numbers for a sequence of three steps and two sequential edits."""

from typing import Any

import pytest
import torch

from lightning_edit.editors.hypernetwork.edit_sequence import EditSequence, clip_together
from lightning_edit.editors.hypernetwork.rledit import RLEdit
from tests.editors.hypernetwork.solving_golden import (
    change,
    distance,
    examples,
    golden,
    gradients,
    joined,
    language_model,
    load,
    networks,
)

#: Stepwise tolerance, free-running, change of parameters by Adam; those of the golden README.
TOLERANCE = {"float64": (1e-8, 1e-8, 1e-6), "float32": (1e-4, 1e-2, 0.2)}


def as_published(settings: dict[str, Any]) -> RLEdit:
    return RLEdit(
        edits_per_step=settings["n_edits"],
        back_depth=settings["back_depth"],
        decay=settings["time_decay"],
        c_norm=settings["reg_coef"],
        norm_term="constant",
        locality_backward="unedited",
        clip_accumulated=settings["max_grad_norm"],
        rank=settings["rank"],
        num_blocks=settings["n_blocks"],
        modules=settings["edit_modules"],
        loss_over="mini_batch",
        mini_batch=settings["data_batch"],
        tokens_per_pass=settings["batch_size"],
        variance="as_code",
        reduction="sum",
        lr=settings["meta_lr"],
        c_loc=settings["loc_coef"],
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param("tiny-gpt2", "float64", marks=pytest.mark.slow), ("tiny-llama", "float32")],
)
def test_a_sequence_is_the_authors(name: str, dtype: str) -> None:
    tensors, meta = golden(f"RLEdit/{name}/seq3x4-{dtype}")
    first, free, adam = TOLERANCE[dtype]
    editor = as_published(meta["settings"])
    editor.bind(*language_model(name, getattr(torch, dtype)))
    editor.to(getattr(torch, dtype))
    for network in networks(editor):
        load(network, tensors, "hyper_before")
    steps = [examples(tensors, step) for step in (1, 2, 3)]
    state = EditSequence.start(editor, editor.rewards)
    for number, step in enumerate(steps, start=1):
        allowed = first if number == 1 else free
        tokens = editor.read(step.inner, state.parameters)
        for module in meta["settings"]["edit_modules"]:
            keys, values = tokens.factors[module]
            assert distance(keys, tensors[f"step{number}.keys.{module}"]) < allowed
            assert distance(values, tensors[f"step{number}.values_grad.{module}"]) < allowed
        before = {key: total.clone() for key, total in state.totals.items()}
        state.advance(step, steps[max(0, number - 2) : number][::-1])
        for module in meta["settings"]["edit_modules"]:
            update = state.totals[f"{module}.weight"] - before[f"{module}.weight"]
            assert distance(update.mT, tensors[f"step{number}.S.{module}"]) < free
        for key, gradient in gradients(editor, state.gradients).items():
            wanted = tensors[f"step{number}.hypergrad_before_clip.{key}"]
            assert distance(gradient, wanted) < free, (number, key)
        clip_together(state.gradients, meta["settings"]["max_grad_norm"])
    (first_network, *_) = networks(editor)
    counted = [k for k in tensors if k.startswith("step3.normalizer") and k.endswith(".n")]
    assert sum(int(tensors[k]) for k in counted) == sum(int(n.norm.count) for n in networks(editor))
    assert int(first_network.norm.count) > 0
    optimiser = editor.configure_optimizers()
    assert isinstance(optimiser, torch.optim.Adam)
    for parameter, gradient in zip(editor.parameters(), state.gradients, strict=True):
        parameter.grad = gradient
    optimiser.step()
    changes = change(editor, tensors, "hyper_before", "hyper_after_sequence")
    for key, (ours, theirs) in changes.items():
        assert distance(ours, theirs) < adam, key
    _validation(editor, tensors, meta, free)


def _validation(
    editor: RLEdit, tensors: dict[str, Any], meta: dict[str, Any], allowed: float
) -> None:
    """Two sequential edits with the trained network, on a model that starts unedited."""
    for network in networks(editor):
        load(network, tensors, "hyper_after_sequence")
    state = EditSequence.start(editor, editor.rewards)
    for number in (1, 2):
        batch = examples(tensors, 3 + number)
        tokens = editor.read(batch.inner, state.parameters)
        editor.update_norms(tokens)  # the authors' statistics go on in validation
        solved = editor.solve(tokens, None)
        state.keep({key: one.dense() for key, (one,) in solved.items()})
    for module in meta["settings"]["edit_modules"]:
        wanted = tensors[f"valid_end.weight_minus_original.{module}"]
        got = state.totals[f"{module}.weight"]
        got = got.mT if got.shape != wanted.shape else got
        assert distance(got, wanted) < max(allowed, 1e-6)


def test_the_training_step_runs_the_same_sequence() -> None:
    tensors, meta = golden("RLEdit/tiny-gpt2/seq3x4-float64")
    editor = as_published(meta["settings"])
    editor.bind(*language_model("tiny-gpt2", torch.float64))
    editor.double()
    for network in networks(editor):
        load(network, tensors, "hyper_before")
    whole = joined([examples(tensors, step) for step in (1, 2, 3)])
    _, found = editor.step_gradients(whole)
    wanted = {
        key: tensors[f"step3.hypergrad_before_clip.{key}"] for key in gradients(editor, found)
    }
    norm = float(tensors["step3.grad_norm"])
    share = min(1.0, meta["settings"]["max_grad_norm"] / (norm + 1e-6))
    for key, gradient in gradients(editor, found).items():
        assert distance(gradient, share * wanted[key]) < 1e-8, key
