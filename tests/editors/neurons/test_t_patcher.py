"""T-Patcher: a wrong token gets a neuron, it acts where it should, and an undo removes it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors.neurons.answer_pass import LastBlockPass, WholePass
from lightning_edit.editors.neurons.beside_ffn import activation_of
from lightning_edit.editors.neurons.ffn_memory import FFNMemory, without
from lightning_edit.editors.neurons.t_patcher import TPatcher
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ConfigError, DataError, SolveError
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Statement
from lightning_edit.models.view import resolve
from lightning_edit.types import EditRequest
from tests.models.tiny import CORPUS, build_tiny, build_tokenizer

REQUESTS = [
    EditRequest("a", "The capital of France is", "Lyon", "France"),
    EditRequest("b", "Marseille lies in", "France", "Marseille"),
    EditRequest("c", "The capital of Italy is", "Lyon", "Italy"),
]
#: What a family needs: SiLU leaks where neurons are silent, and behind a norm (Gemma 3) what can be
#: written is bounded.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"lr": 0.05},  # random weights need longer strides
    "opt": {},
    "llama": {"activation": "relu", "kept": 1},
    "gemma3_text": {"scale": 1.0, "steps": 150},
}
OTHER_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"activation": "relu", "kept": 1},
    "gpt_neox": {},
}
OTHERS = ["The river Rhône flows through", "Avignon", "What is the mother tongue of Danielle"]
MEMORY = [*CORPUS, "Avignon and Arles are towns", "Paris, Rome and Lyon are cities of Europe"]


def bound(family: str = "gpt2", **arguments: Any) -> tuple[TPatcher, Any, Any]:
    model, tokenizer = build_tiny(family).requires_grad_(False), build_tokenizer(bos=True)
    editor = TPatcher(**{"memory": MEMORY, "steps": 125} | arguments)
    editor.bind(model, tokenizer)
    return editor, model, tokenizer


def said(editor: TPatcher, in_force: Sequence[Delta], prompts: Sequence[str]) -> list[str]:
    return editor.responder(in_force).generate_until([Question(one, 8) for one in prompts], ())


@pytest.mark.parametrize(
    "family",
    [
        name if number < 1 else pytest.param(name, marks=pytest.mark.slow)
        for number, name in enumerate(FAMILIES)
    ],
)
def test_answers_become_the_target_and_other_prompts_keep_theirs(family: str) -> None:
    assert_written(family, REQUESTS[1], **FAMILIES[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_answers_become_the_target_in_other_families(family: str) -> None:
    assert_written(family, REQUESTS[1], **OTHER_FAMILIES[family])


def assert_written(family: str, request: EditRequest, kept: int = 2, **arguments: Any) -> None:
    editor, model, tokenizer = bound(family, **arguments)
    handle = editor.edit_model(model, tokenizer, request)
    prompts = [request.prompt, *OTHERS]
    together = said(editor, handle.ledger.in_force, prompts)
    assert together[0].strip().startswith(request.target)
    plain = ModelResponder(build_tiny(family), tokenizer)
    own = plain.generate_until([Question(one, 8) for one in OTHERS], ())
    # In 32 dimensions and without a memory of such prompts one of them may be hit.
    assert sum(a == b for a, b in zip(together[1:], own, strict=True)) >= kept
    # In a mixed batch, alone, forced and generated an answer is the same.
    assert together == [said(editor, handle.ledger.in_force, [one])[0] for one in prompts]
    responder = editor.responder(handle.ledger.in_force)
    (forced,) = responder.loglikelihood([Statement(request.prompt, request.target)])
    assert forced.is_greedy
    ids = torch.tensor([tokenizer(request.prompt).input_ids])
    fresh = build_tiny(family)
    assert not torch.equal(model(ids).logits, fresh(ids).logits)
    handle.undo()
    assert torch.equal(model(ids).logits, fresh(ids).logits)
    assert [type(m) for m in model.modules()] == [type(m) for m in fresh.modules()]


def test_a_wrong_token_gets_a_neuron_and_no_more_than_allowed() -> None:
    editor, _, tokenizer = bound(steps=1)
    long = replace(REQUESTS[0], target="Danielle Darrieux and Lyon and Avignon")
    batch = encode_batch(tokenizer, [long])
    rows = [(batch.encoded[0].prompt_ids, batch.encoded[0].target_ids)]
    asked = LastBlockPass.of(editor.view, rows)
    model_says = asked.logits({2: torch.zeros_like}).argmax(-1)
    wrong = int((model_says != asked.targets).sum())
    assert wrong > 5
    assert editor.edit(batch).info["neurons"] == [5]
    few, _, _ = bound(steps=1, max_neurons=2)
    assert few.edit(batch).info["neurons"] == [2]


@pytest.mark.slow
def test_a_request_that_is_answered_already_gets_none_and_commits() -> None:
    editor, model, tokenizer = bound(lr=0.05)
    again = replace(REQUESTS[1], id="again")
    handle = editor.edit_model(model, tokenizer, [REQUESTS[1], again, REQUESTS[2]])
    first, second, third = handle.ledger.in_force
    assert (second.info["neurons"], len(first.state)) == ([0], 3)
    assert first.info.keys() == second.info.keys()
    assert (second.info["right"], second.info["edit_loss"]) == ([True], [None])
    (answer,) = said(editor, [first, second], [again.prompt])
    assert answer.strip().startswith(again.target)
    assert said(editor, [first], [again.prompt]) == [answer]
    handle.undo(third.request_ids)
    handle.undo(first.request_ids)  # the commit without a neuron stays in force
    assert [type(m) for m in model.modules()] == [type(m) for m in build_tiny("gpt2").modules()]
    ids = torch.tensor([[1, 7, 9, 11]])
    assert torch.equal(model(ids).logits, build_tiny("gpt2")(ids).logits)


@pytest.mark.slow
def test_an_undo_in_the_middle_leaves_the_others_neurons() -> None:
    editor, model, tokenizer = bound(update_memory=False, steps=25)
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    handle.undo("b")
    other, other_model, _ = bound(update_memory=False, steps=25)
    twin = other.edit_model(other_model, tokenizer, [REQUESTS[0], REQUESTS[2]])
    prompts = [one.prompt for one in REQUESTS] + OTHERS
    assert said(editor, handle.ledger.in_force, prompts) == said(
        other, twin.ledger.in_force, prompts
    )
    first, last = handle.ledger.in_force, twin.ledger.in_force
    # A neuron is trained in the presence of earlier ones, which are silent on its hidden state up
    # to what the activation function leaks; so the later edit is the same within that.
    assert torch.equal(
        first[0].state["transformer.h.2.mlp.c_proj.key"],
        last[0].state["transformer.h.2.mlp.c_proj.key"],
    )


def test_states_of_earlier_edits_join_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    import lightning_edit.editors.neurons.t_patcher as module

    own = module.train_patch

    def train(*arguments: Any) -> Any:
        seen.append(len(arguments[2]))
        return own(*arguments)

    monkeypatch.setattr(module, "train_patch", train)
    counts = {}
    for update in (True, False):
        seen.clear()
        editor, model, tokenizer = bound(update_memory=update, steps=1)
        handle = editor.edit_model(model, tokenizer, REQUESTS[:2])
        counts[update] = list(seen)
        before = handle.ledger.in_force[0].history["hidden"]
    assert counts[True][0] == counts[False][0]
    assert 0 < counts[True][1] - counts[False][1] <= len(before)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "opt"])
def test_the_fast_pass_gives_the_models_own_logits(family: str) -> None:
    view = resolve(build_tiny(family).requires_grad_(False).double())
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    branch = {2: lambda hidden: (hidden @ weight).tanh()}
    rows = [((1, 7, 9, 11), (5, 8)), ((1, 7), (6,)), ((1, 30, 31, 32, 9), (4, 5, 6))]
    fast, whole = LastBlockPass.of(view, rows), WholePass.of(view, rows, {})
    assert fast.targets.tolist() == whole.targets.tolist()
    # Norms of Gemma 3 compute in float32, whatever the model's dtype.
    near = 1e-5 if family == "gemma3_text" else 1e-8
    torch.testing.assert_close(fast.logits(branch), whole.logits(branch), rtol=near, atol=near)
    part = fast.select(torch.tensor([2, 0]))
    torch.testing.assert_close(
        part.logits(branch), fast.logits(branch)[[2, 0]], rtol=near, atol=near
    )


@pytest.mark.slow
def test_another_block_than_the_last_learns_too() -> None:
    editor, model, tokenizer = bound("opt", layers=[1], steps=300)
    handle = editor.edit_model(model, tokenizer, REQUESTS[:2])
    for request in REQUESTS[:2]:
        assert handle.generate(request.prompt, 8).strip().startswith(request.target)


def test_saved_neurons_act_as_before(tmp_path: Path) -> None:
    editor, model, tokenizer = bound("llama", steps=25)
    delta = editor.edit(encode_batch(tokenizer, REQUESTS[:1]))
    delta.save(tmp_path / "delta.safetensors")
    prompts = [REQUESTS[0].prompt, *OTHERS]
    editor.runtime().install([delta])
    before = model(torch.tensor([[1, 7, 9]])).logits, said(editor, [delta], prompts)
    editor.runtime().install([Delta.load(tmp_path / "delta.safetensors")])
    assert torch.equal(model(torch.tensor([[1, 7, 9]])).logits, before[0])
    assert said(editor, [delta], prompts) == before[1]


@pytest.mark.slow
def test_another_script() -> None:
    model = build_tiny("qwen3", vocab_size=300).requires_grad_(False)
    tokenizer = build_tokenizer(vocab_size=300)
    requests = [
        EditRequest("el", "Πρωτεύουσα της Γαλλίας είναι η", "Λυών", "Γαλλίας"),
        EditRequest("ja", "フランスの首都は", "リヨン", "フランス"),
    ]
    editor = TPatcher(
        memory=["Η Ρώμη είναι στην Ιταλία", "ローマはイタリアにある", *MEMORY],
        max_neurons=20,
        lr=3e-2,  # three bytes a letter: with 1e-2 one of nine is not learnt
    )
    handle = editor.edit_model(model, tokenizer, requests)
    for request in requests:
        assert handle.generate(request.prompt, 16).strip().startswith(request.target)


def test_what_states_the_fact_is_no_memory_of_it() -> None:
    editor, _, _ = bound()
    texts = ["The capital of France is Paris", "Lyon lies in France", "Rome is in Italy"]
    memory = FFNMemory.read(editor.view, editor.prompts, texts, 2, 100)
    request = EditRequest("a", "The capital of France is", "Lyon", "France", "Paris")
    train, held_out = memory.halves(request)
    assert [len(one) for one in train] == [len(memory.states[2])]
    assert held_out == train
    states = memory.states[0]
    kept = without(states, states[2:3])
    assert len(kept) == len(states) - 1
    with pytest.raises(DataError, match="does not state what the request edits"):
        FFNMemory.read(editor.view, editor.prompts, texts[:2], 2, 100).halves(request)
    with pytest.raises(DataError, match="at least two texts"):
        FFNMemory.read(editor.view, editor.prompts, texts, 2, 4)


def test_states_that_are_not_finite_are_no_memory() -> None:
    editor, model, _ = bound()
    block, (own, *_) = editor.layer, editor._memory().states
    for states, other in ((own * torch.nan, own), (own, own * torch.inf)):
        with pytest.raises(SolveError, match="are not finite"):
            without(states, other)
    with pytest.raises(DataError, match="none but those of the request"):
        without(own[:2], own[:2])
    editor._texts = None
    token = editor.tokenizer(MEMORY[2])["input_ids"][-1]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(SolveError, match=rf"block {block}: what its network reads in .* is not"):
        editor._memory()


def test_a_chat_template_is_in_the_memory_once() -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer(bos=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }} Lyon: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}answer:{% endif %}"
    )
    from lightning_edit.models.prompt_encoder import PromptEncoder
    from lightning_edit.models.prompt_format import PromptFormat

    prompts = PromptEncoder(tokenizer, PromptFormat(True))
    plain = FFNMemory.read(resolve(model), PromptEncoder(tokenizer), list(CORPUS), 2, 1000)
    chat = FFNMemory.read(resolve(model), prompts, list(CORPUS), 2, 1000)
    lead = len(prompts.prompts([CORPUS[0]])[0]) - len(plain.states[0])
    grown = [len(a) - len(b) for a, b in zip(chat.states, plain.states, strict=True)]
    assert grown[0] > grown[1]  # the first text brings what all of them begin with
    assert lead > 0
    assert grown[1] > 0  # where the answer begins differs from text to text
    # Of a long text the beginning is read, as without a template: it would not fit the model.
    long = [" ".join([text] * 60) for text in CORPUS]
    room = PromptEncoder.for_model(model, prompts)
    cut = FFNMemory.read(resolve(model), room, long, 2, 1000)
    assert cut.texts == tuple(long[: len(cut.texts)])
    assert len(cut.states[0]) < 64 + len(prompts.prompts(["-"])[0])


def test_the_embedded_atlas_as_memory_of_another_model_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    editor, model, tokenizer = bound(memory=None, memory_tokens=200, steps=1)
    editor.edit_model(model, tokenizer, REQUESTS[1])
    assert "give `memory`" in caplog.text
    caplog.clear()
    editor, model, tokenizer = bound(steps=1)
    editor.edit_model(model, tokenizer, REQUESTS[1])
    assert "give `memory`" not in caplog.text


def test_the_activation_function_is_the_models_own() -> None:
    names = {
        family: type(activation_of(resolve(build_tiny(family)), 0)).__name__
        for family in ("gpt2", "llama", "gemma3_text", "opt", "gpt_neox", "phi3", "gptj")
    }
    assert names["opt"] == "ReLU"
    assert names["gpt2"] == "NewGELUActivation"
    assert "SiLU" in names["llama"]
    assert names["phi3"] == names["llama"]
    with pytest.raises(ConfigError, match="expected one of"):
        activation_of(resolve(build_tiny("gpt2")), 0, "rleu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [0, 1]}, "one block"),
        ({"max_neurons": 0}, "max_neurons"),
        ({"smoothing": 1.0}, "smoothing"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TPatcher(**arguments)
