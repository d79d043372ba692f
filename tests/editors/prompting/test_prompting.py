"""What every text editor keeps: as if asked alone, exact without edits, undone without a trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import ICE, IKE, RAG, MeLLo, MemPrompt
from lightning_edit.editors.prompting import mello
from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.edits.delta import Delta
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Statement
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.types import EditRequest, Probe
from tests.models.test_prompt_encoder import CHATML, chat_tokenizer
from tests.models.tiny import build_tiny, build_tokenizer

REQUESTS = [
    EditRequest("a", "The capital of France is", "Lyon", "France"),
    EditRequest("b", "法国的首都是", "里昂", "法国"),
    EditRequest("c", "Le «chef» d'Italie {est} \"", "Arles\\n", "Italie"),
    EditRequest("d", "Столица Франции —", "Лион", "Франции", separator=""),
]
#: Edited prompts, a paraphrase, neighbours, other scripts, blanks and line breaks at the end.
PROMPTS = [
    *(one.prompt for one in REQUESTS),
    "What is the capital of France?",
    "The capital of France is ",
    "The river Rhône flows through",
    "京都是哪个国家的城市",
    "Q: Italie?\n",
    "x",
]
ANSWERS = ["Lyon", "里昂", "Paris and Rome"]


def corpus(count: int = 12) -> list[EditRequest]:
    return [
        EditRequest(
            f"demo-{number}",
            f"City {number} lies in",
            "Italy",
            f"City {number}",
            rephrases=(f"One finds City {number} in", f"City {number} belongs to"),
            probes=(
                Probe.of("neighborhood", f"Town {number} lies in", "France"),
                Probe.of("neighborhood", f"Burgh {number} lies in", "France"),
            ),
        )
        for number in range(count)
    ]


MAKERS: dict[str, Callable[[], PromptingEditor]] = {
    "RAG": lambda: RAG(k=2, threshold=None),
    "RAG-threshold": lambda: RAG(k=2, threshold=0.5),
    "RAG-hidden": lambda: RAG(k=1, threshold=None, encoder="hidden"),
    "ICE": ICE,
    "ICE-new_fact": lambda: ICE(form="new_fact", newest=2),
    "IKE": lambda: IKE(corpus(), k=4),
    "IKE-easyedit": lambda: IKE(corpus(), k=2, order="easyedit"),
    "MemPrompt": MemPrompt,
    "MemPrompt-semantic": lambda: MemPrompt(match="semantic", similarity=0.6, examples=False),
    "MeLLo": lambda: MeLLo(steps=2, turn_tokens=12),
}
#: One of each class by default; its other settings, and dialogues, are slow tests.
each = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "-" in name or name == "MeLLo" else [])
        for name in MAKERS
    ],
)
#: Those with a chat template as well: one of each way of choosing.
some = pytest.mark.parametrize("name", ["RAG", "IKE", "MeLLo"])


@pytest.fixture(autouse=True)
def _one_demonstration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four demonstrations of MeLLo are two thousand tokens of this tokenizer."""
    monkeypatch.setattr(mello, "DEMONSTRATIONS", mello.DEMONSTRATIONS[2:3])


def language_model(chat: bool = False) -> tuple[Any, PromptEncoder]:
    model = build_tiny("llama", vocab_size=320, max_position_embeddings=2600, num_hidden_layers=2)
    return model, PromptEncoder(chat_tokenizer(CHATML), PromptFormat(chat))


def edited(name: str, requests: list[EditRequest] = REQUESTS, chat: bool = False) -> Any:
    model, tokenizer = language_model(chat)
    return MAKERS[name]().edit_model(model, tokenizer, requests)


def responder(handle: Any) -> Any:
    return handle.editor.responder(handle.ledger.in_force)


def check_as_alone(name: str, chat: bool) -> None:
    handle = edited(name, chat=chat)
    own = responder(handle)
    questions = [Question(prompt, 3) for prompt in PROMPTS]
    statements = [Statement(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]
    statements.append(Statement(PROMPTS[0], "Lyon", ""))
    scores, texts = own.ask(statements, questions, statements[:3])
    assert texts == [responder(handle).generate_until([one])[0] for one in questions]
    handle.tokenizer.padding_side = "left"
    other = responder(handle)
    for one, score in list(zip(statements, scores, strict=True))[::-3]:
        (alone,) = other.loglikelihood([one])
        assert (alone.tokens, alone.best) == (score.tokens, score.best)
        assert alone.nlls == pytest.approx(score.nlls, abs=1e-4)


@each
def test_an_item_is_answered_as_if_asked_alone(name: str) -> None:
    check_as_alone(name, chat=False)


@pytest.mark.slow
@some
def test_an_item_is_answered_as_if_asked_alone_in_a_chat(name: str) -> None:
    check_as_alone(name, chat=True)


@each
def test_forced_first_choices_are_what_is_generated(name: str) -> None:
    handle = edited(name)
    own, prompts = responder(handle), handle.editor.prompts
    scores = own.loglikelihood([Statement(prompt, "Lyon") for prompt in PROMPTS])
    texts = own.generate_until([Question(prompt, 1) for prompt in PROMPTS], ())
    first = [prompts.decode(score.best[:1]).strip() for score in scores]
    answered = [prompt for prompt, text in zip(PROMPTS, texts, strict=True) if text]
    assert [text for text in texts if text] == [
        one for one, text in zip(first, texts, strict=True) if text
    ]
    assert answered or name == "MeLLo"  # a random model never keeps to the format of a dialogue


@each
def test_without_edits_the_results_are_the_models_own(name: str) -> None:
    handle = edited(name)
    handle.undo()
    bare = ModelResponder(handle.model, handle.editor.prompts)
    questions = [Question(prompt, 4) for prompt in PROMPTS]
    statements = [Statement(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]
    own = responder(handle)
    assert own.ask(statements, questions, statements[:5]) == bare.ask(
        statements, questions, statements[:5]
    )
    assert own.loglikelihood(statements) == bare.loglikelihood(statements)
    assert own.generate_until(questions, ("x",)) == bare.generate_until(questions, ("x",))


@each
def test_the_model_is_never_touched_and_running_text_is_read_as_it_is(name: str) -> None:
    handle = edited(name)
    plain, prompts = language_model()
    assert all(map(torch.equal, handle.model.state_dict().values(), plain.state_dict().values()))
    assert [type(m) for m in handle.model.modules()] == [type(m) for m in plain.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in handle.model.modules())
    texts = ["The capital of France is Paris.", "法国的首都是里昂。"]
    bare = ModelResponder(plain, prompts)
    assert responder(handle).loglikelihood_rolling(texts) == bare.loglikelihood_rolling(texts)
    assert responder(handle).loglikelihood_rolling(texts, 5) == bare.loglikelihood_rolling(texts, 5)


@each
def test_an_undo_in_the_middle_equals_never_having_edited(name: str) -> None:
    handle = edited(name).undo("b")
    twin = edited(name, [REQUESTS[0], *REQUESTS[2:]])
    for prompt in PROMPTS:
        assert handle.editor.told_prompt(prompt) == twin.editor.told_prompt(prompt)
    found, expected = (
        evaluate(Scorer(one.model, one.editor.prompts, responder=responder(one)), REQUESTS[:2])
        for one in (handle, twin)
    )
    assert found == expected
    handle.redo("b")
    whole = edited(name)
    assert [handle.editor.told_prompt(one) for one in PROMPTS] == [
        whole.editor.told_prompt(one) for one in PROMPTS
    ]


@each
def test_saved_edits_and_parts_ask_the_same_in_a_new_editor(name: str, tmp_path: Path) -> None:
    handle = edited(name)
    deltas = []
    for number, delta in enumerate(handle.ledger.in_force):
        delta.save(tmp_path / f"{number}.safetensors")
        deltas.append(Delta.load(tmp_path / f"{number}.safetensors"))
    other = MAKERS[name]()
    if isinstance(other, IKE):
        assert handle.editor.plain_arguments()["args"]["demonstrations"] is None
        handle.editor.save_parts(tmp_path)
        other.demonstrations = None
        other.load_parts(tmp_path)
    other.bind(*language_model())
    other.runtime().install(deltas)
    assert [other.told_prompt(one) for one in PROMPTS] == [
        handle.editor.told_prompt(one) for one in PROMPTS
    ]
    statements = [Statement(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]
    assert other.responder(deltas).loglikelihood(statements) == responder(handle).loglikelihood(
        statements
    )


@each
def test_both_forms_and_a_batch_of_several_requests(name: str) -> None:
    model, tokenizer = language_model()
    handle = MAKERS[name]().edit_model(model, tokenizer.tokenizer, REQUESTS, chat="both")
    assert len(handle.ledger.in_force) == len(REQUESTS)
    assert "<|im_start|>" not in handle.editor.told_prompt(PROMPTS[0])
    assert all(delta.info["texts_cut"] == [0] for delta in handle.ledger.in_force)


def test_a_later_edit_of_a_prompt_stands_in_place_of_the_earlier_one() -> None:
    first, second = REQUESTS[0], EditRequest("z", "The  capital of France is", "Nice", "France")
    for name in ("RAG", "ICE", "IKE", "MemPrompt", "MeLLo"):
        handle = edited(name, [first, REQUESTS[1], second])
        assert [fact.target for fact in handle.editor.memory.facts] == ["里昂", "Nice"]
        handle.undo("z")
        assert [fact.target for fact in handle.editor.memory.facts] == ["Lyon", "里昂"]


def test_a_bos_in_the_prompt_stays_in_front_of_the_texts() -> None:
    handle = edited("RAG")
    bos = handle.tokenizer.bos_token
    assert bos
    told = handle.editor.told_prompt(f"{bos}The capital of France is")
    assert told.startswith(f"{bos}New Fact: ")
    assert told.count(bos) == 1
    assert told.endswith(
        "New Fact: The capital of France is Lyon\nPrompt: The capital of France is"
    )


@pytest.mark.parametrize("name", ["RAG-hidden", "IKE", "MemPrompt"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_reads_the_texts_before_the_prompt(family: str, name: str) -> None:
    sizes = {} if family == "t5" else {"max_position_embeddings": 600}
    model = build_tiny(family, vocab_size=320, **sizes)
    tokenizer = build_tokenizer(eos=True, vocab_size=320)
    handle = MAKERS[name]().edit_model(model, tokenizer, REQUESTS[:2])
    own, bare = responder(handle), ModelResponder(model, tokenizer)
    prompt = REQUESTS[0].prompt
    told = handle.editor.told_prompt(prompt)
    assert told != prompt
    statement, question = Statement(prompt, "Lyon"), Question(prompt, 3)
    assert own.loglikelihood([statement]) == bare.loglikelihood([Statement(told, "Lyon")])
    assert own.generate_until([question]) == bare.generate_until([Question(told, 3)])
    handle.undo()
    assert own.loglikelihood([statement]) == bare.loglikelihood([statement])
