"""The published definitions, computed from unbatched logits by hand, agree with the report."""

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_edit.datamodules.formats import read_requests
from lightning_edit.evaluation.scorer import Baseline, Scorer, evaluate
from lightning_edit.metrics import summarise
from lightning_edit.models.loading import load_language_model
from lightning_edit.types import EditRequest, Probe
from tests.conftest import shared_path
from tests.models.tiny import build_tiny, build_tokenizer

NEIGHBORS = ("The capital of Italy is", "Marseille lies in", "Lyon lies in")
HOPS = ("The city in Italy is", "What is the city in France?")
FACTS = [("France", "Lyon", "Paris"), ("Italy", "Arles", "Rome"), ("Arles", "France too", "Lyon")]
TOKENIZER = build_tokenizer(bos=True)


def requests() -> list[EditRequest]:
    return [
        EditRequest(
            id=subject,
            prompt=f"The capital of {subject} is",
            target=new,
            old_target=old,
            rephrases=(f"What is the capital of {subject}?",),
            probes=(
                *(Probe.of("neighborhood", text, old) for text in NEIGHBORS[: number + 1]),
                Probe.of("natural_question", f"What lies in {subject}?", "Marseille"),
                *(Probe.of("one_hop", text, "Berlin") for text in HOPS[: number % 2 + 1]),
            ),
        )
        for number, (subject, new, old) in enumerate(FACTS)
    ]


@torch.no_grad()
def ask(model: nn.Module, prompt: str, text: str) -> tuple[float, list[int], list[int]]:
    """Return mean negative log probability, arg-max tokens and tokens of an answer."""
    before = TOKENIZER(prompt)["input_ids"]
    ids = TOKENIZER(f"{prompt} {text}")["input_ids"]
    assert ids[: len(before)] == before  # this tokenizer does not merge across blanks
    target = ids[len(before) :]
    logits = model(torch.tensor([ids])).logits[0, len(before) - 1 : -1].double()
    logprob = logits.log_softmax(-1)[range(len(target)), target]
    return -float(logprob.mean()), logits.argmax(-1).tolist(), target


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def share(first: list[int], second: list[int]) -> float:
    return mean([float(a == b) for a, b in zip(first, second, strict=True)])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_counterfact_zsre_and_easyedit_definitions(family: str) -> None:
    pristine, edited = build_tiny(family), build_tiny(family, seed=1)
    cases: dict[str, list[float]] = {}

    def add(name: str, values: list[float]) -> None:
        cases.setdefault(name, []).append(mean(values))

    for number, (subject, new, old) in enumerate(FACTS):
        prompt, rephrase = f"The capital of {subject} is", f"What is the capital of {subject}?"
        l_new, l_old = ask(edited, prompt, new)[0], ask(edited, prompt, old)[0]
        add("reliability/margin_sign@tf", [float(l_old > l_new)])  # ES
        add("reliability/margin@tf", [math.exp(-l_new) - math.exp(-l_old)])  # EM
        _, best, target = ask(edited, rephrase, new)
        add("generalization/token_acc@tf", [share(best, target)])  # ZsRE, EasyEdit
        neighbors = NEIGHBORS[: number + 1]
        true = [ask(edited, text, old)[0] for text in neighbors]
        false = [ask(edited, text, new)[0] for text in neighbors]
        pairs = list(zip(true, false, strict=True))
        add("locality.neighborhood/margin_sign@tf", [float(a < b) for a, b in pairs])  # NS
        add("locality.neighborhood/margin@tf", [math.exp(-a) - math.exp(-b) for a, b in pairs])
        post = [ask(edited, text, old)[1] for text in neighbors]
        pre = [ask(pristine, text, old)[1] for text in neighbors]
        add(  # EasyEdit's locality
            "locality.neighborhood/kept@tf",
            [share(a, b) for a, b in zip(post, pre, strict=True)],
        )
        _, best, gold = ask(edited, f"What lies in {subject}?", "Marseille")
        add("locality.natural_question/token_acc@tf", [share(best, gold)])  # ZsRE's specificity
        asked = [ask(edited, text, "Berlin")[1:] for text in HOPS[: number % 2 + 1]]
        add("portability/token_acc@tf", [share(a, b) for a, b in asked])  # EasyEdit
        add("portability.one_hop/em@tf", [float(a == b) for a, b in asked])
        l_new, l_old = ask(edited, rephrase, new)[0], ask(edited, rephrase, old)[0]
        add("counterfact/PS@tf", [float(l_old > l_new)])
        add("counterfact/PM@tf", [math.exp(-l_new) - math.exp(-l_old)])
    baseline = Baseline(evaluate(Scorer(pristine, TOKENIZER, modes=("tf",)), requests()))
    scorer = Scorer(edited, TOKENIZER, modes=("tf",))
    values = summarise(evaluate(scorer, requests(), baseline))
    expected = {name: mean(listed) for name, listed in cases.items()}
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert values["counterfact/ES@tf"] == values["reliability/margin_sign@tf"]
    assert values["counterfact/NM@tf"] == values["locality.neighborhood/margin@tf"]


def real(name: str, form: str, count: int) -> tuple[Any, Any, list[dict[str, Any]], list[Any]]:
    """Return model, tokenizer, raw records and requests of published records."""
    path = shared_path(f"data/{name}")
    model = shared_path("models/counterfact-zsre-gpt2")
    loaded, tokenizer = load_language_model(str(model), "float32", None, True)
    records = json.loads(path.read_text(encoding="utf-8"))[:count]
    return loaded, tokenizer, records, read_requests(path, form).requests[:count]


@torch.no_grad()
def one_row(model: Any, tokenizer: Any, prompt: str, text: str) -> tuple[float, float]:
    """Score a target behind a prompt as the authors' scripts do, one row at a time.

    Returns the mean negative log probability and the share of tokens that are the first choice.
    """
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    plain = {"add_special_tokens": False}
    before = tokenizer(prompt, **plain)["input_ids"]
    target = tokenizer(f" {text}", **plain)["input_ids"]
    logits = model(torch.tensor([[*begin, *before, *target]])).logits[0]
    rows = logits[len(begin) + len(before) - 1 : -1].double()
    nll = -rows.log_softmax(-1)[range(len(target)), target].mean().item()
    return nll, share(rows.argmax(-1).tolist(), target)


@pytest.mark.slow
def test_counterfacts_scores_on_its_own_records() -> None:
    model, tokenizer, records, requests = real(
        "counterfact/counterfact_500.json", "counterfact", 25
    )
    scores: dict[str, list[float]] = {}
    for record in records:
        rewrite = record["requested_rewrite"]
        new, true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
        prompts = {
            "E": [rewrite["prompt"].format(rewrite["subject"])],
            "P": record["paraphrase_prompts"],
            "N": record["neighborhood_prompts"],
        }
        for letter, listed in prompts.items():
            pairs = [
                (one_row(model, tokenizer, p, new)[0], one_row(model, tokenizer, p, true)[0])
                for p in listed
            ]
            sign = -1 if letter == "N" else 1
            wins = [float(sign * (l_true - l_new) > 0) for l_new, l_true in pairs]
            sizes = [sign * (math.exp(-l_new) - math.exp(-l_true)) for l_new, l_true in pairs]
            scores.setdefault(f"counterfact/{letter}S@tf", []).append(mean(wins))
            scores.setdefault(f"counterfact/{letter}M@tf", []).append(mean(sizes))
    found = summarise(evaluate(Scorer(model, tokenizer, modes=("tf",)), requests))
    expected = {name: mean(values) for name, values in scores.items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_zsres_scores_on_its_own_records() -> None:
    name = "zsre/zsre_mend_eval_portability_gpt4.json"
    model, tokenizer, records, requests = real(name, "zsre", 40)
    scores: dict[str, list[float]] = {}
    for record in records:
        asked = {
            "reliability": (record["src"], record["alt"]),
            "generalization": (record["rephrase"], record["alt"]),
            "locality.natural_question": (f"{record['loc']}?", record["loc_ans"]),
            "portability.one_hop": (
                record["portability"]["New Question"], record["portability"]["New Answer"],
            ),
        }  # fmt: skip
        for group, (prompt, answer) in asked.items():
            hits = one_row(model, tokenizer, prompt.strip(), answer.strip())[1]
            scores.setdefault(f"{group}/token_acc@tf", []).append(hits)
    found = summarise(evaluate(Scorer(model, tokenizer, modes=("tf",)), requests))
    expected = {name: mean(values) for name, values in scores.items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
