"""RLEdit: a sequence's gradient is autograd's, and every published choice has a name."""

from typing import Any

import pytest
import torch

from lightning_edit.editors.hypernetwork.rledit import RLEdit
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.metrics import summarise
from tests.editors.hypernetwork.mending import trainer
from tests.editors.hypernetwork.solving import (
    answer_tokens,
    gradients_of,
    kl_sum,
    language_model,
    nll_sum,
    parameters_with,
    sample,
    shaken,
    solved_by_autograd,
)
from tests.toy import ToyData, toy_requests

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]
RIGHT: dict[str, Any] = {
    "edits_per_step": 2,
    "back_depth": 2,
    "decay": 0.5,
    "c_norm": 0.3,
    "c_loc": 3.0,
    "rank": 3,
    "num_blocks": 2,
    "step_size": 0.05,
    "own_probes": 1,
    "other_facts": 1,
}


def rledit(kind: str = "gpt2", **options: Any) -> RLEdit:
    editor = RLEdit(**RIGHT | options)
    editor.bind(*language_model(kind))
    editor.trained_batches += 1
    shaken(editor)
    return editor


def by_one_graph(
    editor: RLEdit, kind: str, count: int, options: dict[str, Any]
) -> list[torch.Tensor]:
    """The sequence's gradient with a graph of each step as a whole, past batches included."""
    fresh = rledit(kind, **options)  # its statistics grow in the same way
    steps = sample(editor, count).split(2)
    state: list[dict[str, torch.Tensor]] = []
    total = [torch.zeros_like(p) for p in fresh.parameters()]
    for number, step in enumerate(steps):
        before = parameters_with(fresh, *state) if state else None
        tokens = fresh.read(step.inner, before)
        fresh.update_norms(tokens)
        (update,) = solved_by_autograd(fresh, tokens, None)
        after = parameters_with(fresh, *state, update)
        loss = fresh.rewards.c_norm * sum(u.square().sum() for u in update.values())
        reference = before if fresh.rewards.locality_reference == "previous" else None
        for age, past in enumerate(reversed(steps[max(0, number - 1) : number + 1])):
            outer, locality = fresh.learnt(past.outer), fresh.learnt(past.locality)
            nll = nll_sum(fresh, [row for _, row in outer], after) / answer_tokens(outer)
            local = [row for _, row in locality]
            kl = kl_sum(fresh, local, after, reference) / answer_tokens(locality)
            loss = loss + 0.5**age * (fresh.c_edit * nll + fresh.c_loc * kl)
        for place, gradient in enumerate(gradients_of(fresh, loss)):  # type: ignore[arg-type]
            total[place] += gradient
        state.append({name: value.detach() for name, value in update.items()})
    return total


@pytest.mark.parametrize(
    ("reference", "kind"), [("previous", "gpt2"), ("original", "gpt2"), ("previous", "bart")]
)
def test_past_batches_run_again_give_the_gradient_of_one_graph(reference: Any, kind: str) -> None:
    options = {"locality_reference": reference, "mini_batch": 3, "tokens_per_pass": 3}
    editor = rledit(kind, **options)
    _, found = editor.step_gradients(sample(editor, 5))  # steps of 2, 2 and 1 edits
    wanted = by_one_graph(editor, kind, 5, options)
    for (name, _), got, one in zip(editor.named_parameters(), found, wanted, strict=True):
        assert torch.allclose(got, one, rtol=1e-6, atol=1e-9), name
        assert bool(one.any()), name


@pytest.mark.slow
def test_published_choices_have_names_and_change_the_gradient() -> None:
    def gradient(**options: Any) -> torch.Tensor:
        editor = rledit(layers=[0, 1], **options)
        _, found = editor.step_gradients(sample(editor, 6))
        return torch.cat([one.flatten() for one in found])

    right = gradient()
    for published in (
        {"locality_backward": "unedited"},
        {"norm_term": "constant"},
        {"locality_reference": "original"},
        {"back_depth": 1},
        {"clip_accumulated": 1e-3},
    ):
        assert float((gradient(**published) - right).norm()) > 1e-6 * float(right.norm()), published
    no_norm = gradient(c_norm=0.0)
    assert torch.equal(no_norm, gradient(norm_term="constant"))
    clipped = gradient(clip_accumulated=1e-3)
    assert float(clipped.norm()) == pytest.approx(1e-3, rel=1e-2)


def test_the_edited_model_is_run_from_pristine_weights() -> None:
    """In half precision a sequence rounds once, from the sum of its updates."""
    editor = RLEdit(**RIGHT)
    editor.bind(*language_model("llama", torch.bfloat16))
    before = {n: p.clone() for n, p in editor.language_model.named_parameters()}
    terms, found = editor.step_gradients(sample(editor, 6))
    assert bool(torch.isfinite(terms["loss"]))
    assert any(bool(one.any()) for one in found)
    for name, value in editor.language_model.named_parameters():
        assert torch.equal(value, before[name]), name


def test_validation_scores_are_those_after_sequential_edits(tmp_path: Any) -> None:
    model, tokenizer = language_model("gpt2", torch.float32)
    editor = RLEdit(**RIGHT | {"step_size": 1.0, "layers": [0, 1]})
    editor.bind(model, tokenizer)
    editor.trained_batches += 1
    requests = toy_requests(5)
    editor.update_norms(editor.read(encode_batch(tokenizer, requests)))
    data = ToyData(5)
    data.batch_size = 5
    (found,) = trainer(tmp_path).validate(editor, datamodule=data, verbose=False)
    scorer = Scorer(model, tokenizer, modes=("tf",))
    pristine = Baseline(evaluate(scorer, requests))
    deltas, kept = [], {n: p.clone() for n, p in model.named_parameters()}
    for start in (0, 2, 4):
        delta = editor.edit(encode_batch(tokenizer, requests[start : start + 2]))
        deltas.append(delta)
        for handle in editor.weights:
            handle.write(handle.read() + delta.weights[handle.name].dense())
    scores = summarise(evaluate(scorer, requests, pristine))
    for name in ("reliability/em@tf", "generalization/em@tf", "locality/kept@tf"):
        assert found[f"val/{name}"] == pytest.approx(scores[name], abs=1e-6), name
    assert scores["locality/kept@tf"] < 1
    assert any(not torch.equal(p, kept[n]) for n, p in model.named_parameters())


def test_a_sequence_is_split_with_its_prompts() -> None:
    editor = rledit()
    batch = sample(editor, 5)
    parts = batch.split(2)
    assert [len(part.inner) for part in parts] == [2, 2, 1]
    assert sum((part.inner.ids for part in parts), ()) == batch.inner.ids
    for number, part in enumerate(parts):
        rows = [(edit + 2 * number, row) for edit, row in part.outer]
        assert rows == [one for one in batch.outer if one[0] // 2 == number]
        local = [(edit + 2 * number, row) for edit, row in part.locality]
        assert local == [one for one in batch.locality if one[0] // 2 == number]


def test_default_layers_and_arguments() -> None:
    assert RLEdit.default_layers(32) == [22, 23, 24, 25, 26, 27, 28, 29, 30]
    assert RLEdit.default_layers(5) == [3, 4]
    with pytest.raises(ValueError, match="back_depth >= 1"):
        RLEdit(back_depth=0)
