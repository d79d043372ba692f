"""The published definitions, computed from unbatched logits by hand, agree with the report."""

import math

import pytest
import torch
from torch import nn

from lightning_edit.metrics import summarise
from lightning_edit.scoring import Baseline, Scorer, evaluate
from lightning_edit.types import EditRequest, Probe
from tests.models.tiny import build_tiny, build_tokenizer

NEIGHBORS = ("The capital of Italy is", "Marseille lies in", "Lyon lies in")
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
            probes=tuple(Probe.of("neighborhood", text, old) for text in NEIGHBORS[: number + 1]),
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
    baseline = Baseline(evaluate(Scorer(pristine, TOKENIZER, modes=("tf",)), requests()))
    scorer = Scorer(edited, TOKENIZER, modes=("tf",))
    values = summarise(evaluate(scorer, requests(), baseline))
    expected = {name: mean(listed) for name, listed in cases.items()}
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-5)
