"""LTI: a target search that follows what the model says when it is told the fact."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_edit.editors import FTL, LTI, MEMIT, ROME
from lightning_edit.editors.texts import essence_texts
from lightning_edit.encoding import encode_batch
from lightning_edit.functional.tokens import subject_last_index
from tests.editors.golden import batch, golden, model, relative, statistics, tokenizer


def bound(folder: Path, **arguments: float) -> LTI:
    example = golden("MEMIT/tiny-gpt2/ten-float32")
    language_model = model(example.model_name)
    host = MEMIT(
        layers=[1, 2, 3],
        moment_weight=20.0,
        statistics=statistics(example.model_name, language_model, folder),
        context_templates=example.templates,
    )
    editor = LTI(host, **arguments)
    editor.bind(language_model, tokenizer(example.model_name))
    return editor


def requests() -> list:
    return batch(golden("MEMIT/tiny-gpt2/ten-float32")).requests[:3]


def test_without_constraints_it_is_the_search_of_the_host(tmp_path: Path) -> None:
    editor = bound(tmp_path, nll=1.0, last=0.0, middle=0.0)
    editor.host.objective = replace(editor.host.objective, kl_factor=0.0)
    part = encode_batch(editor.tokenizer, requests())
    mine, host = editor.edit(part), editor.host.edit(part)
    for name, update in mine.weights.items():
        assert relative(update.dense(), host.weights[name].dense()) < 1e-3


def test_the_reference_is_read_at_the_shifted_positions(tmp_path: Path) -> None:
    editor = bound(tmp_path)
    (request, *_) = requests()
    part = encode_batch(editor.tokenizer, [request])
    essence = f"{request.subject} is a"
    told = f"Imagine that {request.prompt} {request.target}\n{request.prompt}"
    ids = editor.tokenizer(told, return_tensors="pt")["input_ids"]
    found = editor._reference(part, essence_texts(editor.tokenizer, part, "prompt_end"))
    expected = editor.language_model(ids).logits[0, -1].log_softmax(-1)
    assert torch.allclose(found.last[0], expected, atol=1e-4)
    ids = editor.tokenizer(essence, return_tensors="pt")["input_ids"]
    expected = editor.language_model(ids).logits[0, -1].log_softmax(-1)
    assert torch.allclose(found.last[-1], expected, atol=1e-4)
    seen = editor.language_model(ids, output_hidden_states=True).hidden_states
    at = subject_last_index(editor.tokenizer, essence, len(str(request.subject)))
    hidden = editor.language_model.transformer.ln_f(seen[editor._middle() + 1][0, at])
    expected = editor.language_model.lm_head(hidden).log_softmax(-1)
    assert torch.allclose(found.middle[-1], expected, atol=1e-4)


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
