"""Memory editors with their own defaults, on the embedded model and on a real instruct model."""

from typing import Any

import pytest

from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import GRACE, MELO, MEMOIR, WISE, Editor
from lightning_edit.inference.responder import Question
from lightning_edit.models.loading import load_language_model
from lightning_edit.types import EditRequest
from tests.edits.test_instruct_model import SMOL

EDITORS: list[type[Editor]] = [GRACE, MELO, MEMOIR, WISE]
each = pytest.mark.parametrize("editor", EDITORS, ids=lambda one: one.__name__)
FACTS = [
    EditRequest("a", "The capital of France is", "Madrid", "France"),
    EditRequest("b", "The mother tongue of Angela Merkel is", "French", "Angela Merkel"),
    EditRequest("c", "The currency of Japan is the", "peso", "Japan"),
]
OTHERS = ["Water boils at", "The river Thames flows through", "My favourite food is"]


def ask(editor: Editor, deltas: Any, prompts: list[str]) -> list[str]:
    return editor.responder(deltas).generate_until([Question(prompt, 8) for prompt in prompts])


@pytest.mark.slow
@pytest.mark.parametrize(
    "editor",
    [MELO, *(pytest.param(one, marks=pytest.mark.slow) for one in (GRACE, MEMOIR, WISE))],
)
def test_an_edit_of_the_embedded_model_is_answered(editor: type[Editor]) -> None:
    model, tokenizer = load_language_model("atlas")
    # Its answer is one token: GRACE's one value is not always enough for the four of the first.
    request = AtlasDataModule(limit=2).edit_requests()[1]
    outside = [probe.prompt for probe in request.probes if probe.aspect == "locality"][:3]
    own = editor().bind(model, tokenizer)
    before = ask(own, (), outside)
    handle = own.edit_model(model, tokenizer, request)
    answer, *after = ask(own, handle.ledger.in_force, [request.prompt, *outside])
    assert answer.startswith(request.target)
    assert sum(a == b for a, b in zip(after, before, strict=True)) >= len(outside) - 1


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@each
def test_facts_of_an_instruct_model_are_answered(editor: type[Editor], chat: bool) -> None:
    if not (SMOL / "config.json").exists():
        pytest.skip(f"no instruct model in {SMOL}; set LIGHTNING_EDIT_INSTRUCT_MODEL to a folder")
    if editor is WISE and chat:
        pytest.xfail("by its defaults WISE writes 1 of 3 facts through this chat template")
    # WISE writes two of three; of the others two take less time.
    facts = FACTS if editor is WISE else FACTS[::2]
    model, tokenizer = load_language_model(str(SMOL))
    own = editor()
    handle = own.edit_model(model, tokenizer, facts, chat=chat)
    prompts = [request.prompt for request in facts]
    answers = ask(own, handle.ledger.in_force, [*prompts, *OTHERS])
    right = [a.startswith(r.target) for a, r in zip(answers, facts, strict=False)]
    assert sum(right) >= 2, answers
    handle.undo()
    kept = ask(own, handle.ledger.in_force, OTHERS)
    assert sum(a == b for a, b in zip(answers[len(facts) :], kept, strict=True)) >= 2
