"""Causal tracing in batches against one state, one noise sample and one whole pass at a time."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_edit.analysis.tracing.facts import Fact
from lightning_edit.analysis.tracing.restore import KINDS, Kind, Prepared, Tracer, embedding_std
from lightning_edit.exceptions import ArchitectureError, DataError
from lightning_edit.functional.tracing import noise, window
from lightning_edit.models.view import ModelView, resolve
from tests.models.tiny import TINY, build_tokenizer

pytestmark = pytest.mark.slow  # minutes in all: whole edits, studies and traces of a real model

FACT = Fact("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", 21, "French")
DECODERS = sorted(set(TINY) - {"t5", "bart"})
SCALE, SAMPLES, WIDTH = 0.7, 2, 2


def plain_probability(
    view: ModelView, fact: Prepared, sample: int | None, restore: dict[str, tuple[int, Tensor]]
) -> float:
    """One whole pass over one row, with a state of some modules put back at one token."""
    drawn = noise(SAMPLES, len(fact.subject), view.hidden_size, SCALE, seed=0).float()
    with ExitStack() as stack, torch.no_grad():

        def corrupt(module: Any, args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            if sample is not None:
                changed[0, fact.subject.start : fact.subject.stop] += drawn[sample]
            return changed

        stack.callback(view.embeddings.register_forward_hook(corrupt).remove)
        for name, (token, state) in restore.items():

            def put(
                module: Any, args: Any, output: Any, at: int = token, new: Tensor = state
            ) -> Any:
                whole = output[0] if isinstance(output, tuple) else output
                changed = whole.clone().view(1, -1, whole.shape[-1])
                changed[0, at] = new
                changed = changed.view(whole.shape)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            module = view.model.get_submodule(name)
            stack.callback(module.register_forward_hook(put).remove)
        logits = view.model(input_ids=torch.tensor([fact.ids])).logits
    return float(torch.softmax(logits[0, -1], -1)[fact.answer])


def clean_states(view: ModelView, fact: Prepared, names: list[str]) -> dict[str, Tensor]:
    states: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for name in names:

            def keep(module: Any, args: Any, output: Any, own: str = name) -> None:
                whole = output[0] if isinstance(output, tuple) else output
                states[own] = whole.reshape(-1, whole.shape[-1]).clone()

            stack.callback(view.model.get_submodule(name).register_forward_hook(keep).remove)
        view.model(input_ids=torch.tensor([fact.ids]))
    return states


def names_of(view: ModelView, kind: Kind, layer: int) -> list[str]:
    layers = [layer] if kind == "hidden" else window(layer, WIDTH, view.num_blocks)
    blocks = [view.block(one) for one in layers]
    return [
        {"hidden": block.name, "mlp": block.mlp, "attention": block.attention_out}[kind]
        for block in blocks
    ]


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("rows_per_pass", [2, 64])
def test_effects_are_those_of_one_state_at_a_time(family: str, rows_per_pass: int) -> None:
    view = resolve(TINY[family]())
    fact = Prepared.of(build_tokenizer(bos=family == "llama"), FACT)
    found = Tracer(view, SCALE, SAMPLES, WIDTH, rows_per_pass=rows_per_pass).trace(fact)
    assert found.clean == pytest.approx(plain_probability(view, fact, None, {}), abs=1e-6)
    corrupted = sum(plain_probability(view, fact, s, {}) for s in range(SAMPLES)) / SAMPLES
    assert found.corrupted == pytest.approx(corrupted, abs=1e-6)
    names = [
        name for kind in KINDS for at in range(view.num_blocks) for name in names_of(view, kind, at)
    ]
    states = clean_states(view, fact, names)
    tokens = range(fact.subject.start, len(fact.ids))
    for kind in KINDS:
        effects = found.indirect[kind]
        assert effects.shape == (len(tokens), view.num_blocks)
        for row, token in [
            (0, tokens[0]),
            (len(fact.subject) - 1, fact.subject[-1]),
            (-1, tokens[-1]),
        ]:
            for layer in range(view.num_blocks):
                wanted = {
                    name: (token, states[name][token]) for name in names_of(view, kind, layer)
                }
                one = [plain_probability(view, fact, s, wanted) for s in range(SAMPLES)]
                effect = sum(one) / SAMPLES - corrupted
                assert effects[row, layer].item() == pytest.approx(effect, abs=2e-6)
    assert max(effects.abs().max().item() for effects in found.indirect.values()) > 1e-4


def test_the_whole_answer_comes_back_with_the_last_hidden_state() -> None:
    view = resolve(TINY["gpt2"]())
    fact = Prepared.of(build_tokenizer(), FACT)
    found = Tracer(view, SCALE, SAMPLES).trace(fact)
    total = found.clean - found.corrupted
    assert found.indirect["hidden"][-1, -1].item() == pytest.approx(total, abs=1e-6)


def test_the_model_is_as_before() -> None:
    model = TINY["llama"]()
    fact = Prepared.of(build_tokenizer(bos=True), FACT)
    Tracer(resolve(model), SCALE, SAMPLES, WIDTH).trace(fact)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_predicted_is_the_likeliest_token() -> None:
    model = TINY["gpt2"]()
    fact = Prepared.of(build_tokenizer(), FACT)
    logits = model(input_ids=torch.tensor([fact.ids])).logits
    assert Tracer(resolve(model), SCALE).predicted(fact) == int(logits[0, -1].argmax())


def test_noise_is_measured_against_the_subjects_embeddings() -> None:
    model = TINY["gpt2"]()
    fact = Prepared.of(build_tokenizer(), FACT)
    rows = model.get_input_embeddings().weight[
        list(fact.ids[fact.subject.start : fact.subject.stop])
    ]
    expected = float(rows.detach().double().std())
    assert embedding_std(resolve(model), [fact]) == pytest.approx(expected)


def test_a_subject_has_the_tokens_that_cover_it() -> None:
    tokenizer = build_tokenizer(bos=True)
    fact = Prepared.of(tokenizer, FACT)
    covered = tokenizer.decode([fact.ids[position] for position in fact.subject])
    assert covered.strip() == "Danielle Darrieux"


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoder_models_are_refused_with_the_reason(family: str) -> None:
    with pytest.raises(ArchitectureError, match="encoder reads the whole prompt"):
        Tracer(resolve(TINY[family]()), SCALE)


def test_an_answer_without_a_token_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be traced"):
        Prepared.of(build_tokenizer(), Fact("The capital of France is", "France", 15, " "))
