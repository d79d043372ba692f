"""What is read at the subject does not depend on how texts are laid out."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from lightning_edit.editors.locate.prompts import rewriting_texts
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.inference.hidden_states import read_last
from lightning_edit.inference.hooks import Side, capture, hooked
from lightning_edit.inference.packed.backend import packable
from lightning_edit.inference.packed.block_inputs import BlockInputs
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView, resolve
from tests.editors.locate.test_target_search import FAMILIES, REQUESTS, TEMPLATES
from tests.models.tiny import TINY, break_token, build_tokenizer


def material(family: str) -> tuple[ModelView, list[TokenizedText]]:
    view = resolve(TINY[family]().requires_grad_(False))
    tokenizer = build_tokenizer(bos=family in {"llama", "gemma2"})
    texts = rewriting_texts(tokenizer, encode_batch(tokenizer, REQUESTS), TEMPLATES)
    return view, [text.until_subject() for text in texts]


@pytest.mark.parametrize("rows_per_pass", [100, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_pass_a_text(family: str, rows_per_pass: int) -> None:
    view, texts = material(family)
    wanted: dict[str, Side] = {view.down_projection(0): "input", view.block(1).name: "output"}
    found = read_last(view, texts, wanted, rows_per_pass)
    for number, text in enumerate(texts):
        with torch.no_grad(), capture(view.model, wanted) as seen:
            view.model(input_ids=torch.tensor([text.ids]), use_cache=False)
        for name, value in seen.items():
            torch.testing.assert_close(found[name][number].float(), value[0, -1])


def test_a_model_whose_attention_stays_is_read_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    view, texts = material("llama")
    wanted: dict[str, Side] = {view.block(1).name: "output"}
    packed = read_last(view, texts, wanted, 100)
    monkeypatch.setattr(view.model.config, "_attn_implementation", "eager")
    assert not packable(view.model)
    padded = read_last(view, texts, wanted, 100)
    name = view.block(1).name
    torch.testing.assert_close(packed[name], padded[name], rtol=1e-4, atol=1e-5)


def test_shared_beginnings_change_nothing() -> None:
    view, texts = material("gpt2")
    wanted: dict[str, Side] = {view.block(1).name: "output"}
    apart = read_last(view, [replace(text, lead=0) for text in texts], wanted, 100)
    name = view.block(1).name
    together = read_last(view, texts, wanted, 100)[name]
    torch.testing.assert_close(together, apart[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
def test_readings_that_go_on_where_layers_change_equal_whole_ones(family: str) -> None:
    view, texts = material(family)
    texts = [replace(text, lead=0) if n % 3 == 0 else text for n, text in enumerate(texts)]
    inputs = BlockInputs(view)
    for number in range(view.num_blocks):
        module = view.down_projection(number)
        wanted: dict[str, Side] = {module: "input", view.blocks[-1].name: "output"}
        inputs.keep = number
        reused = read_last(view, texts, wanted, 5, inputs=inputs)
        whole = read_last(view, texts, wanted, 5)
        for name, value in whole.items():
            torch.testing.assert_close(reused[name], value, rtol=0, atol=0)
        # Layer by layer, weights change as an editor's do.
        with torch.no_grad():
            view.model.get_submodule(module).weight.mul_(1.5)


def test_blocks_below_the_kept_one_do_not_run_again() -> None:
    view, texts = material("llama")
    wanted: dict[str, Side] = {view.block(2).name: "output"}
    inputs, ran = BlockInputs(view), []
    inputs.keep = 1
    attentions = [view.block(n).attention_out for n in range(3)]
    modules = [view.model.get_submodule(name) for name in attentions]
    with ExitStack() as stack:
        for number, module in enumerate(modules):
            stack.enter_context(hooked(module, lambda *_, n=number: ran.append(n)))
        read_last(view, texts, wanted, 100, inputs=inputs)
        first, ran[:] = list(ran), []
        read_last(view, texts, wanted, 100, inputs=inputs)
    # Once for the shared beginnings, and once for the rest.
    assert first == [0, 1, 2, 0, 1, 2]
    assert ran == [1, 2, 1, 2]


@pytest.mark.parametrize("rows_per_pass", [100, 5])
def test_a_text_whose_states_are_not_finite_breaks_no_other(rows_per_pass: int) -> None:
    view, texts = material("gpt2")
    wanted: dict[str, Side] = {view.down_projection(0): "input", view.block(1).name: "output"}
    sound = read_last(view, texts, wanted, rows_per_pass)
    (token, *_) = set(texts[-1].ids).difference(*(one.ids for one in texts if one.request != 3))
    break_token(view.model, token)
    found = read_last(resolve(view.model), texts, wanted, rows_per_pass)
    for name, states in found.items():
        for number, text in enumerate(texts):
            assert bool(states[number].isfinite().all()) is (token not in text.ids)
            if token not in text.ids:
                torch.testing.assert_close(
                    states[number], sound[name][number], rtol=1e-4, atol=1e-5
                )
