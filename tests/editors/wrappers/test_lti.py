"""LTI: a target search that follows what the model says when it is told the fact."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import FTL, LTI, MEMIT, ROME
from lightning_edit.editors.locate.prompts import essence_texts, rewriting_texts
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.prompt_encoder import PromptText
from tests.editors.golden import batch, golden, model, relative, statistics, tokenizer
from tests.editors.wrappers.plain_lti import plain_lti

pytestmark = pytest.mark.slow  # minutes in all: whole edits, studies and traces of a real model


def bound(folder: Path, **arguments: Any) -> LTI:
    example = golden("MEMIT/tiny-gpt2/ten-float32")
    language_model = model(example.model_name)
    host = MEMIT(
        layers=[1, 2, 3],
        moment_weight=20.0,
        clamp=0.75,
        statistics=statistics(example.model_name, language_model, folder),
        context_templates=example.templates[:4],
    )
    editor = LTI(host, **arguments)
    editor.bind(language_model, tokenizer(example.model_name))
    return editor


def requests() -> list:
    return batch(golden("MEMIT/tiny-gpt2/ten-float32")).requests[:5]


def test_without_constraints_it_is_the_search_of_the_host(tmp_path: Path) -> None:
    editor = bound(tmp_path, nll=1.0, last=0.0, middle=0.0)
    editor.host.objective = replace(editor.host.objective, kl_factor=0.0)
    part = encode_batch(editor.tokenizer, requests())
    mine, host = editor.edit(part), editor.host.edit(part)
    for name, update in mine.weights.items():
        assert relative(update.dense(), host.weights[name].dense()) < 1e-3


def test_the_reference_is_read_at_the_shifted_positions(tmp_path: Path) -> None:
    editor = bound(tmp_path)
    part = encode_batch(editor.tokenizer, requests())
    for request, one in zip(part.requests, part.split(), strict=True):
        told, essence = (
            editor._premise_texts(one),
            essence_texts(editor.tokenizer, one, "prompt_end"),
        )
        texts = [*rewriting_texts(editor.tokenizer, one, editor.host.templates), *essence]
        found = editor._run_reference(texts, dict(zip(texts, [*told, *essence], strict=True)))
        prompt = f"Imagine that {request.prompt} {request.target}\n{request.prompt}"
        ids = editor.tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = editor.language_model(ids).logits[0, -1].log_softmax(-1)
        assert torch.allclose(found.last[0], expected, atol=1e-4)
        prompt = f"{request.subject} is a"
        ids = editor.tokenizer(prompt, return_tensors="pt")["input_ids"]
        output = editor.language_model(ids, output_hidden_states=True)
        assert torch.allclose(found.last[-1], output.logits[0, -1].log_softmax(-1), atol=1e-4)
        subject = 0, len(str(request.subject))
        (encoded,) = editor.prompts.encode([PromptText(prompt, subject=subject)])
        at = encoded.subject_last
        hidden = output.hidden_states[editor.compared_layer + 1][0, at]
        expected = editor.language_model.lm_head(editor.language_model.transformer.ln_f(hidden))
        assert torch.allclose(found.middle[-1], expected.log_softmax(-1), atol=1e-4)


def test_all_requests_together_are_the_plain_search_one_by_one(tmp_path: Path) -> None:
    editor = bound(tmp_path, nll=0.5, last=0.1, middle=0.1)
    part = encode_batch(editor.tokenizer, requests())
    objective = replace(editor.host.objective, steps=8, lr=0.1, clamp=20.0, threshold=0.0)
    editor.host.objective = objective
    # Half of the requests reach this loss, and leave the batch at different passes.
    found = editor.search(part)
    editor.host.objective = replace(objective, threshold=sorted(found.losses)[2] + 1e-3)
    together = editor.search(part)
    assert len(set(together.steps)) > 1
    for number, one in enumerate(part.split()):
        apart = editor.search(one)
        plain, steps = plain_lti(editor, one)
        assert together.steps[number] == apart.steps[0] == steps
        assert relative(together.wanted[number], apart.wanted[0]) < 1e-4
        assert relative(together.wanted[number], plain) < 1e-4
        assert together.losses[number] == pytest.approx(apart.losses[0], rel=1e-4)


def test_few_rows_a_pass_change_nothing(tmp_path: Path) -> None:
    editor = bound(tmp_path)
    part = encode_batch(editor.tokenizer, requests())
    together = editor.search(part)
    editor.host.rows_per_pass = 1
    assert relative(editor.search(part).wanted, together.wanted) < 1e-4


def test_independent_edits_are_those_of_a_search_alone(tmp_path: Path) -> None:
    editor = bound(tmp_path)
    part = encode_batch(editor.tokenizer, requests()[:2])
    for mine, one in zip(editor.edit_independent(part), part.split(), strict=True):
        for name, update in editor.edit(one).weights.items():
            assert relative(mine.weights[name].dense(), update.dense()) < 1e-3


@pytest.mark.parametrize("layer", [2, 5])
def test_layers_that_cannot_be_compared_are_refused(tmp_path: Path, layer: int) -> None:
    with pytest.raises(ConfigError, match="from 3 to 4"):
        bound(tmp_path, middle_layer=layer)


def test_constraints_keep_the_edited_model_nearer_to_the_told_one(tmp_path: Path) -> None:
    part = encode_batch(tokenizer("tiny-gpt2"), requests()[:1])
    norms = [
        sum(bound(tmp_path, nll=1.0, last=weight, middle=0.0).edit(part).norm().values())
        for weight in (0.0, 10.0)
    ]
    assert norms[1] < norms[0]


def test_hosts_without_a_search_are_refused() -> None:
    with pytest.raises(ValueError, match="target search"):
        LTI(FTL())
    assert LTI(ROME()).batched is False


def test_a_host_of_one_request_writes_them_one_after_another(tmp_path: Path) -> None:
    example = golden("MEMIT/tiny-gpt2/ten-float32")
    language_model = model(example.model_name)
    moments = statistics(example.model_name, language_model, tmp_path)
    host = ROME(layers=[1], statistics=moments, context_templates=["{}"], steps=3)
    editor = LTI(host).bind(language_model, tokenizer(example.model_name))
    part = encode_batch(editor.tokenizer, requests()[:2])
    whole = editor.edit(part)
    first, second = part.split()
    one = editor.edit(first)
    with one.applied(language_model):
        other = editor.edit(second)
    for name, update in whole.weights.items():
        assert (
            relative(update.dense(), one.weights[name].dense() + other.weights[name].dense()) < 1e-5
        )
    assert whole.info["loss"] == [*one.info["loss"], *other.info["loss"]]
