"""What memory editors do to models of several kinds: the edits are answered, the rest is as it was.

Random models, so that no answer is the model's own.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from lightning_edit.editors import GRACE, MELO, MEMOIR, WISE, Editor
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.inference.model_call import ModelCall
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Responder, Statement
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tiny, build_tokenizer

# The contracts of test_runtime_contract.py and the embedded model are in the default tier.
pytestmark = pytest.mark.slow

REQUESTS = [
    EditRequest("a", "The capital of France is", "Lyon", "France"),
    EditRequest("b", "Marseille lies in", "capital", "Marseille"),
    EditRequest("c", "What is the mother tongue of Danielle?", "France", "Danielle"),
]
OTHERS = ["The river Rhône flows through", "Avignon", "French and Italian are"]
TEMPLATES = ["{}", "Lyon. {}"]
ARGUMENTS: dict[type[Editor], dict[str, Any]] = {
    GRACE: {"layer": 1, "steps": 40},
    WISE: {
        "layer": 1,
        "steps": 40,
        "templates": TEMPLATES,
        "unrelated": OTHERS[:1],
        "density": 1.0,
        "lr": 0.1,
        "margins": (0.5, 4.0, 3.0),
    },
    MEMOIR: {"layer": 1, "steps": 30, "templates": TEMPLATES, "threshold": 0.9, "mask_size": 9},
    MELO: {"index_layer": 0, "layers": [1, 2], "rank": 8, "steps": 40, "lr": 2e-2},
}
#: A character is several tokens here.
MANY_TOKENS: dict[type[Editor], dict[str, Any]] = {
    GRACE: {},
    WISE: {"steps": 80},
    MEMOIR: {"mask_size": 30, "steps": 80},
    MELO: {},
}
KINDS = ["gpt2", "llama", "qwen3", "opt"]
#: Two of them for each editor by default, so that every kind is there twice; the others are slow.
QUICK = {GRACE: KINDS[:2], WISE: KINDS[1:3], MEMOIR: KINDS[::3], MELO: KINDS[2:]}
PAIRS = [
    pytest.param(
        editor,
        kind,
        id=f"{editor.__name__}-{kind}",
        marks=[] if kind in QUICK[editor] else [pytest.mark.slow],
    )
    for editor in ARGUMENTS
    for kind in KINDS
]
each = pytest.mark.parametrize("editor", ARGUMENTS, ids=lambda one: one.__name__)


def bound(editor: type[Editor], kind: str) -> tuple[Any, Any, Editor]:
    model, tokenizer = build_tiny(kind), build_tokenizer(bos=True)
    return model, tokenizer, editor(**ARGUMENTS[editor])


def requests_of(editor: type[Editor]) -> list[EditRequest]:
    """Return what is written together: a random model has no room for more in one side matrix."""
    return REQUESTS[:1] if editor is WISE else REQUESTS


@cache
def edited(editor: type[Editor], kind: str) -> tuple[Any, Editor, EditedModel]:
    model, tokenizer, own = bound(editor, kind)
    return model, own, own.edit_model(model, tokenizer, requests_of(editor))


@torch.no_grad()
def reads_memory(model: Any, prompt: str) -> bool:
    """Return whether a prompt reads an entry, by what was decided in its pass."""
    decided: list[torch.Tensor] = []
    original = ModelCall.decide

    def spy(call: ModelCall, name: str, make: Any) -> Any:
        decided.append(original(call, name, make))
        return decided[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelCall, "decide", spy)
        model(torch.tensor([build_tokenizer(bos=True)(prompt).input_ids]))
    return bool((decided[0] >= 0).any())


def answers(responder: Responder, prompts: Sequence[str]) -> list[str]:
    return responder.generate_until([Question(prompt, 5) for prompt in prompts], ())


def bare(kind: str) -> ModelResponder:
    model = build_tiny(kind)
    return ModelResponder(model, build_tokenizer(bos=True), layout=_plain(kind))


@cache
def _plain(kind: str) -> Any:
    _, own, handle = edited(GRACE, kind)
    return own.responder(handle.ledger.in_force).layout  # type: ignore[attr-defined]


@pytest.mark.parametrize(("editor", "kind"), PAIRS)
def test_edits_are_answered_alone_and_in_any_company(editor: type[Editor], kind: str) -> None:
    model, own, handle = edited(editor, kind)
    responder = own.responder(handle.ledger.in_force)
    prompts = [*(request.prompt for request in REQUESTS), *OTHERS]
    together = answers(responder, prompts)
    requests = requests_of(editor)
    for request, answer in zip(requests, together, strict=False):
        assert answer.startswith(request.target), (request, answer)
    assert together == [answers(responder, [prompt])[0] for prompt in prompts]
    assert handle.generate(prompts[0], 5).strip() == together[0]
    for score in responder.loglikelihood([Statement(r.prompt, r.target) for r in requests]):
        assert score.best == score.tokens  # forced as generated
    outside = [prompt for prompt in OTHERS if not reads_memory(model, prompt)]
    assert outside
    assert answers(responder, outside) == answers(bare(kind), outside)
    statements = [Statement(prompt, "Lyon") for prompt in outside]
    # To the bit.
    assert responder.loglikelihood(statements) == bare(kind).loglikelihood(statements)


@torch.no_grad()
@each
def test_padding_on_either_side_and_a_cache_change_nothing(editor: type[Editor]) -> None:
    model, _, handle = edited(editor, "llama")
    tokenizer = build_tokenizer(bos=True)
    rows = [tokenizer(request.prompt).input_ids for request in REQUESTS]
    width = max(map(len, rows)) + 2
    for left in (True, False):
        pads = [[0] * (width - len(row)) for row in rows]
        ids = [p + r if left else r + p for p, r in zip(pads, rows, strict=True)]
        mask = [[int(t in span) for t in range(width)] for span in _spans(rows, width, left)]
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        logits = model(**inputs, position_ids=positions).logits
        for number, row in enumerate(rows):
            alone = model(torch.tensor([row])).logits[0, -1]
            place = width - 1 if left else len(row) - 1
            torch.testing.assert_close(logits[number, place], alone, rtol=1e-3, atol=1e-3)
        if left:
            new = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
            for request, line in zip(requests_of(editor), new[:, width:], strict=False):
                assert tokenizer.decode(line).strip().startswith(request.target)
    assert len(handle.ledger.in_force) > 0


def _spans(rows: list[list[int]], width: int, left: bool) -> list[range]:
    if left:
        return [range(width - len(row), width) for row in rows]
    return [range(len(row)) for row in rows]


@each
@pytest.mark.parametrize("kind", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_an_undo_leaves_what_was_never_edited(editor: type[Editor], kind: str) -> None:
    model, tokenizer, own = bound(editor, kind)
    handle = own.edit_model(model, tokenizer, REQUESTS[:1])
    handle.edit(REQUESTS[1]).edit(REQUESTS[2])
    state = [delta.state for delta in handle.ledger.in_force]
    handle.undo("c")
    twin_model, _, twin = bound(editor, kind)
    other = twin.edit_model(twin_model, tokenizer, REQUESTS[:1]).edit(REQUESTS[1])
    prompts = [*(request.prompt for request in REQUESTS), *OTHERS]
    statements = [Statement(p, "Lyon") for p in prompts]
    scores = own.responder(handle.ledger.in_force).loglikelihood(statements)
    assert scores == twin.responder(other.ledger.in_force).loglikelihood(statements)
    # The last one again: the same to the bit.
    handle.edit(REQUESTS[2])
    again = handle.ledger.in_force[2].state
    assert all(torch.equal(again[name], state[2][name]) for name in state[2])
    handle.undo()
    plain, ids = build_tiny(kind), torch.tensor([[1, 7, 9, 11]])
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert [type(one) for one in model.modules()] == [type(one) for one in plain.modules()]


@pytest.mark.parametrize("editor", [GRACE, MELO], ids=lambda one: one.__name__)
def test_an_undo_in_the_middle_is_exact_where_edits_are_apart(editor: type[Editor]) -> None:
    model, tokenizer, own = bound(editor, "llama")
    handle = own.edit_model(model, tokenizer, REQUESTS[:1])
    handle.edit(REQUESTS[1]).edit(REQUESTS[2]).undo("b")
    twin_model, _, twin = bound(editor, "llama")
    other = twin.edit_model(twin_model, tokenizer, REQUESTS[:1]).edit(REQUESTS[2])
    statements = [Statement(request.prompt, request.target) for request in REQUESTS]
    scores = own.responder(handle.ledger.in_force).loglikelihood(statements)
    assert scores == twin.responder(other.ledger.in_force).loglikelihood(statements)


@each
def test_a_prompt_edited_again_answers_with_the_newest_edit(editor: type[Editor]) -> None:
    model, tokenizer = build_tiny("gpt2"), build_tokenizer(bos=True)
    own = editor(**ARGUMENTS[editor])
    handle = own.edit_model(model, tokenizer, REQUESTS[:1])
    handle.edit(EditRequest("again", REQUESTS[0].prompt, "capital", "France"))
    responder = own.responder(handle.ledger.in_force)
    assert answers(responder, [REQUESTS[0].prompt])[0].startswith("capital")
    handle.undo("again")
    assert answers(responder, [REQUESTS[0].prompt])[0].startswith("Lyon")


@pytest.mark.parametrize("editor", [GRACE, MEMOIR, MELO], ids=lambda one: one.__name__)
def test_the_newer_edit_of_a_prompt_outlives_an_undo_of_the_older(editor: type[Editor]) -> None:
    again = EditRequest("again", REQUESTS[0].prompt, "capital", "France")
    model, tokenizer, own = bound(editor, "gpt2")
    handle = own.edit_model(model, tokenizer, REQUESTS[:1]).edit(again).undo("a")
    responder = own.responder(handle.ledger.in_force)
    assert answers(responder, [again.prompt])[0].startswith("capital")
    twin_model, _, twin = bound(editor, "gpt2")
    other = twin.edit_model(twin_model, tokenizer, [again])
    statements = [Statement(prompt, "Lyon") for prompt in [again.prompt, *OTHERS]]
    scores = responder.loglikelihood(statements)
    assert scores == twin.responder(other.ledger.in_force).loglikelihood(statements)


@each
@pytest.mark.parametrize("target", ["日", pytest.param("М", marks=pytest.mark.slow)])
def test_other_scripts_are_written(editor: type[Editor], target: str) -> None:
    model = build_tiny("llama", vocab_size=300)
    tokenizer = build_tokenizer(bos=True, vocab_size=300)
    prompt = "首都は" if target == "日" else "Столица страны —"
    own = editor(**ARGUMENTS[editor] | MANY_TOKENS[editor])
    handle = own.edit_model(model, tokenizer, EditRequest("x", prompt, target))
    responder = own.responder(handle.ledger.in_force)
    (score,) = responder.loglikelihood([Statement(prompt, target)])
    # One value at one token of a random model fits one token of an answer.
    count = 1 if editor is GRACE else len(score.tokens)
    assert score.best[:count] == score.tokens[:count]
    if editor is not GRACE:
        (answer,) = responder.generate_until([Question(prompt, 12)], ())
        assert answer.startswith(target)


def test_prompts_are_hashed_with_the_background_of_the_edits() -> None:
    _, own, handle = edited(MEMOIR, "gpt2")
    responder = own.responder(handle.ledger.in_force)
    # As on a machine that rounds otherwise, but far more: its own background is another text.
    model, tokenizer = build_tiny("gpt2"), build_tokenizer(bos=True)
    there = MEMOIR(**ARGUMENTS[MEMOIR], background=["Lyon Lyon Lyon"]).bind(model, tokenizer)
    ledger = Ledger(model, there, runtime=there.runtime())
    ledger.take([(delta, ()) for delta in handle.ledger.in_force])
    statements = [Statement(p, "Lyon") for p in [*(r.prompt for r in REQUESTS), *OTHERS]]
    scores = there.responder(ledger.in_force).loglikelihood(statements)
    assert scores == responder.loglikelihood(statements)
    # A later edit joins them.
    new = there.edit_independent(encode_batch(there.prompts, [replace(REQUESTS[0], id="new")], 0))
    assert torch.equal(new[0].state["background"], handle.ledger.in_force[0].state["background"])
