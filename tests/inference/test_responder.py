"""A responder's verbs equal a plain forward pass of each text alone, in every layout."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.evaluation.harness import harness_model
from lightning_edit.functional.measures import NLL_CAP
from lightning_edit.inference.answer_pass import ForwardPass, PassBackend, ReadRow
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.responder import Question, Statement
from tests.models.tiny import break_token, build_tiny, build_tokenizer

STATEMENTS = [
    Statement("The capital of France is", "Paris"),
    Statement("The capital of France is", "Lyon and Arles"),
    Statement("The capital of France is", "Paris", ": "),
    Statement("What is the capital of Italy?\n", "Rome"),
    Statement("法国的首都是", "巴黎"),
]


@torch.no_grad()
def plain(model: Any, tokenizer: Any, text: str, answer_tokens: int) -> list[float]:
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    scores = model(ids).logits[0, :-1].log_softmax(-1)
    picked = -scores[range(ids.shape[1] - 1), ids[0, 1:]]
    return [float(value) for value in picked[-answer_tokens:]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "mistral"])
@pytest.mark.parametrize("kind", ["prefix_tree", "padded", "plain"])
def test_likelihoods_are_those_of_a_plain_pass(family: str, kind: Any) -> None:
    model, tokenizer = build_tiny(family), build_tokenizer(bos=True)
    responder = ModelResponder(model, tokenizer, 3, PassLayout(kind))
    texts = [
        "The capital of France is Paris",
        "The capital of France is Lyon and Arles",
        "The capital of France is: Paris",
        "What is the capital of Italy?\nRome",
        "法国的首都是巴黎",
    ]
    for text, score in zip(texts, responder.loglikelihood(STATEMENTS), strict=True):
        assert score.nlls == pytest.approx(
            plain(model, tokenizer, text, len(score.tokens)), abs=1e-4
        )
        assert score.total == pytest.approx(sum(score.nlls))


#: One prompt has a token of its own, and a text that is scored besides is its beginning.
ONE_BROKEN = [
    Statement("The capital of France is", "Paris"),
    Statement("The capital of France is Paris 法 of", "Lyon and Arles"),
    Statement("The capital of France is", "Lyon"),
    Statement("What is the capital of Italy?", "Rome"),
    Statement("Marseille", "lies in France"),
]


@pytest.mark.parametrize("batch_size", [3, 64])
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("llama", kind) for kind in ("prefix_tree", "padded", "plain")),
        ("gpt2", "prefix_tree"),
        *(("t5", kind) for kind in ("encoded_once", "padded", "plain")),
    ],
)
@pytest.mark.parametrize("broken", ["a prompt", "padding", "nothing"])
def test_a_broken_prompt_breaks_no_other(
    family: str, kind: Any, broken: str, batch_size: int
) -> None:
    model, tokenizer = build_tiny(family), build_tokenizer()
    token = {"a prompt": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}.get(broken)
    whole = ModelResponder(model, tokenizer, 1, PassLayout("plain")).loglikelihood(ONE_BROKEN)
    if token is not None:
        break_token(model, token)
    layout = PassLayout(kind)
    found, texts = ModelResponder(model, tokenizer, batch_size, layout).ask(
        ONE_BROKEN, [Question(one.prompt, 4) for one in ONE_BROKEN[:1]], ONE_BROKEN
    )
    alone = ModelResponder(model, tokenizer, 1, layout)
    for number, (statement, score) in enumerate(zip(ONE_BROKEN, found, strict=True)):
        (expected,) = alone.loglikelihood([statement])
        if broken == "a prompt" and number == 1:
            assert set(score.nlls) == set(expected.nlls) == {NLL_CAP}
            assert score.best == expected.best
            continue
        assert score.nlls == pytest.approx(expected.nlls, abs=1e-4)
        assert score.nlls == pytest.approx(whole[number].nlls, abs=1e-4)
        assert max(score.nlls) < NLL_CAP
    if broken != "padding":
        assert texts == alone.generate_until([Question(ONE_BROKEN[0].prompt, 4)])


@pytest.mark.parametrize("kind", ["prefix_tree", "padded", "plain"])
def test_only_what_is_not_finite_is_read_again(kind: Any, monkeypatch: Any) -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer()
    calls: list[list[list[int]]] = []
    forward = model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["input_ids"].tolist())
        return forward(*args, **kwargs)

    responder = ModelResponder(model, tokenizer, 64, PassLayout(kind))
    monkeypatch.setattr(model, "forward", counting)
    responder.loglikelihood(ONE_BROKEN)
    assert len(calls) == 1
    # An answer that is impossible is not broken.
    head = model.get_output_embeddings()
    (wanted,) = tokenizer("Paris")["input_ids"][:1]
    scores = head.forward

    def impossible(states: torch.Tensor) -> torch.Tensor:
        logits = scores(states)
        logits[..., wanted] = float("-inf")
        return logits

    monkeypatch.setattr(head, "forward", impossible)
    calls.clear()
    found = responder.loglikelihood(ONE_BROKEN)
    assert any(max(one.nlls) == NLL_CAP for one in found)
    assert len(calls) == 1


def test_a_window_of_running_text_is_scored_as_by_itself() -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer()
    break_token(model, tokenizer.pad_token_id)
    texts = ["The capital of France is Paris", "Marseille lies", "Lyon lies in France too"]
    found = ModelResponder(model, tokenizer, 64).loglikelihood_rolling(texts)
    for text, score in zip(texts, found, strict=True):
        (expected,) = ModelResponder(model, tokenizer, 1).loglikelihood_rolling([text])
        assert score.nlls == pytest.approx(expected.nlls, abs=1e-4)
        assert max(score.nlls) < NLL_CAP


def test_forced_first_choices_are_the_greedy_continuation() -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer(bos=True)
    responder = ModelResponder(model, tokenizer)
    questions = [Question(one.prompt, 6, one.separator) for one in STATEMENTS]
    for question, text in zip(questions, responder.generate_until(questions, ()), strict=True):
        again = ModelResponder(model, tokenizer, 1, PassLayout("plain"))
        assert again.generate_until([question], ()) == [text]
        (ids,) = responder.prompts.prompts([question.prompt + (question.separator or "")])
        own = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert tokenizer.decode(own[0, len(ids) :], skip_special_tokens=True).strip() == text


def test_running_text_longer_than_the_context_is_scored_window_by_window() -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer(bos=True)
    text = "The capital of France is Paris and Lyon lies in France too. " * 8
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 128
    (score,) = ModelResponder(model, tokenizer).loglikelihood_rolling([text])
    assert list(score.tokens) == ids[1:]
    last = torch.tensor([ids[-129:-1]])
    with torch.no_grad():
        expected = -model(last).logits[0, -1].log_softmax(-1)[ids[-1]]
    assert score.nlls[-1] == pytest.approx(float(expected), abs=1e-4)
    (short,) = ModelResponder(model, tokenizer).loglikelihood_rolling([text], 10)
    assert short.nlls == pytest.approx(score.nlls[:9], abs=1e-4)
    assert ModelResponder(model, build_tokenizer()).loglikelihood_rolling([""])[0].tokens == ()


@dataclass(frozen=True)
class OneByOne:
    """A backend of somebody else: every row in a pass of its own."""

    shares_prefixes: bool = False

    def passes(self, model: Any, rows: Sequence[ReadRow], batch_size: int) -> Iterator[ForwardPass]:
        for number, row in enumerate(rows):
            places = torch.arange(len(row.context) - 1, len(row.context) + len(row.fed))
            ids = torch.tensor([row.context + row.fed])
            yield ForwardPass({"input_ids": ids}, [number], (torch.zeros_like(places), places))


def test_a_backend_of_ones_own_gives_the_same_scores() -> None:
    assert isinstance(OneByOne(), PassBackend)
    model, tokenizer = build_tiny("gpt2"), build_tokenizer()
    own = ModelResponder(model, tokenizer, backend=OneByOne()).loglikelihood(STATEMENTS)
    for one, other in zip(
        own, ModelResponder(model, tokenizer).loglikelihood(STATEMENTS), strict=True
    ):
        assert one.tokens == other.tokens
        assert one.nlls == pytest.approx(other.nlls, abs=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of lm-eval and of what it imports
def test_a_task_of_lm_evaluation_harness_runs_on_an_edited_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval.api.task import ConfigurableTask

    from lightning_edit import load_language_model
    from lightning_edit.editors import ROME

    rows = [("The capital of France is", [" Rome", " Paris", " Tokyo"], 0)]
    data = tmp_path / "facts.jsonl"
    data.write_text(
        "".join(
            f'{{"question": "{question}", "choices": {str(choices).replace(chr(39), chr(34))}, '
            f'"label": {label}}}\n'
            for question, choices, label in rows
        )
    )
    task = ConfigurableTask(
        config={
            "task": "facts",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "question",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        }
    )
    model, tokenizer = load_language_model("atlas")

    def accuracy(editor: Any, in_force: Any) -> float:
        lm = harness_model(editor.responder(in_force))
        found = lm_eval.simple_evaluate(lm, tasks=[task], bootstrap_iters=0)
        return float(found["results"]["facts"]["acc,none"])

    editor = ROME()
    edited = editor.edit_model(
        model,
        tokenizer,
        {"prompt": "The capital of France is", "target": "Rome", "subject": "France"},
    )
    assert accuracy(editor, edited.ledger.in_force) == 1.0
    edited.undo()
    assert accuracy(editor, edited.ledger.in_force) == 0.0


def test_running_text_in_half_precision_scores_the_tokens_that_stand_there() -> None:
    model = build_tiny("gpt2", vocab_size=1000).bfloat16()
    tokenizer = build_tokenizer(vocab_size=1000)
    tokenizer.add_tokens([f"word{number}" for number in range(1000 - len(tokenizer))])
    text = "word500 word501 word503"
    ids = tokenizer(text)["input_ids"]
    assert max(ids) > 512  # bfloat16 holds no odd number from there on
    (score,) = ModelResponder(model, tokenizer).loglikelihood_rolling([text])
    assert list(score.tokens) == ids[1:]
    with torch.no_grad():
        expected = -model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    picked = expected[range(len(ids) - 1), ids[1:]].tolist()
    assert score.nlls == pytest.approx(picked, rel=0.05, abs=0.05)
