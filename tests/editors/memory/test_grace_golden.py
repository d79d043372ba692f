"""GRACE against EasyEdit's own runs: keys, values, radii and what the model then says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_edit.editors.memory.grace import GRACE
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from tests.editors.golden import Golden, golden, model, relative, tokenizer
from tests.editors.memory.golden_answers import log_probability, stored

STEPS = 200


def published_values() -> Callable[[Tensor, int], Tensor]:
    """Return the values that edits begin from: the published code draws one at every pass."""
    generator, edits = torch.Generator().manual_seed(0), [0]

    def draw(like: Tensor, seed: int) -> Tensor:
        for _ in range(0 if edits[0] == 0 else STEPS - 1):
            torch.rand(1, len(like), generator=generator)
        edits[0] += 1
        return torch.rand(1, len(like), generator=generator)[0]

    return draw


def run(example: Golden, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, GRACE]:
    bound, tok = model(example.model_name), tokenizer(example.model_name)
    editor = GRACE(layer=4, projection="up", steps=STEPS, radius=1.0)
    monkeypatch.setattr(editor, "cold_value", published_values())
    return bound, tok, editor


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["single", pytest.param("seq10", marks=pytest.mark.slow)])
def test_a_whole_run_is_that_of_the_published_code(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = golden(f"EasyEdit-GRACE/tiny-gpt2/{mode}")
    bound, tok, editor = run(example, monkeypatch)
    handle = editor.edit_model(bound, tok, example.requests)
    balls = editor.memory_of(handle.ledger.in_force).balls
    for name, ours in (
        ("keys", torch.stack([ball.key for ball in balls])),
        ("values", torch.stack([ball.value for ball in balls])),
        ("epsilons", torch.tensor([[ball.radius] for ball in balls])),
    ):
        theirs = example.tensors[f"grace.{name}"].view(ours.shape)
        apart = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
        assert float(apart.max()) < 1e-4
    for prompt, answer, expected in stored(example, "post_key_at_prompt_end"):
        assert log_probability(bound, tok, prompt, answer) == pytest.approx(expected, abs=1e-3)
    # As shipped: every prompt is looked up at the place where the last edit's prompt ended.
    stale = example.meta["last_key_id"]
    for prompt, answer, expected in stored(example, "post"):
        found = log_probability(bound, tok, prompt, answer, stale)
        assert found == pytest.approx(expected, abs=1e-3)
    if mode == "seq10":  # where the two differ, so that the check above can fail
        assert list(stored(example, "post")) != list(stored(example, "post_key_at_prompt_end"))


@pytest.mark.slow
def test_a_codebook_of_a_hundred_edits_is_that_of_the_published_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys and radii of the whole sequence, values of one late edit, and answers by stored values.

    No two of the hundred meet, so an edit learns in the sequence what it learns alone.
    """
    example = golden("EasyEdit-GRACE/tiny-gpt2/seq100")
    bound, tok = model(example.model_name), tokenizer(example.model_name)
    editor = GRACE(layer=4, projection="up", steps=1, radius=1.0)
    handle = editor.edit_model(bound, tok, example.requests)
    deltas = list(handle.ledger.in_force)
    balls = editor.memory_of(deltas).balls
    theirs = example.tensors["grace.keys"]
    apart = (torch.stack([ball.key for ball in balls]) - theirs).norm(dim=1) / theirs.norm(dim=1)
    assert float(apart.max()) < 1e-5
    assert [ball.radius for ball in balls] == example.tensors["grace.epsilons"].tolist()

    values, place = example.tensors["grace.values"], 73
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(STEPS * place + 1, values.shape[1], generator=generator)[-1]
    monkeypatch.setattr(editor, "cold_value", lambda like, seed: start)
    editor.steps = STEPS
    handle.undo()
    learnt = editor.edit(encode_batch(tok, [example.requests[place]])).state["value"][0]
    assert relative(learnt, values[place]) < 1e-4

    with_values = []
    for one, value in zip(deltas, values, strict=True):
        with_values.append(Delta(one.request_ids, state={**one.state, "value": value[None]}))
    editor.runtime().install(with_values)
    asked = list(stored(example, "post_key_at_prompt_end"))
    for prompt, answer, expected in asked[::31]:
        assert log_probability(bound, tok, prompt, answer) == pytest.approx(expected, abs=1e-3)
    stale = example.meta["last_key_id"]
    asked = list(stored(example, "post"))
    for prompt, answer, expected in asked[::31]:
        found = log_probability(bound, tok, prompt, answer, stale)
        assert found == pytest.approx(expected, abs=1e-3)
    assert asked != list(stored(example, "pre"))
