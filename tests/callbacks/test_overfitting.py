"""Which questions show editing overfit, and what is read from them."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_edit.callbacks.base import EvalContext
from lightning_edit.callbacks.overfitting import OverfittingCallback, questions_of
from lightning_edit.types import EditRequest, Probe
from tests.toy import toy_model, toy_requests, toy_tokenizer

REQUEST = EditRequest(
    id="e",
    prompt="the capital of land1 is",
    target="city5",
    subject="land1",
    old_target="city2",
    probes=(
        Probe.of("relation_specificity", "what is land1 ?", "city3"),
        Probe.of("other_attribution", "the land of land1 is", ("city2", "city9")),
        # The edited answer is right here, so it cannot leak.
        Probe.of("other_attribution", "what city is land1 ?", ("city9", "City5")),
        Probe.of("neighborhood", "the capital of land2 is", "city4"),
        Probe.of("distracting_neighbor", "land1 is city5 . the capital of land2 is", "city4"),
        replace(Probe.of("multi_hop", "what is the land of land1 ?", "city7"), old="city8"),
        Probe.of("subject_alias", "the capital of land1 is", "city5"),
    ),
)


def test_questions_in_which_the_edited_answer_is_wrong() -> None:
    found = {(q.group, q.prompt): (q.right, q.old) for q in questions_of(REQUEST)}
    assert found == {
        ("subject_specificity", "what is land1 ?"): ("city3", "city2"),
        # The old answer of the edit is the right one here, so it is no third answer.
        ("subject_specificity", "the land of land1 is"): ("city2", None),
        ("prefix_distraction", "land1 is city5 . the capital of land2 is"): ("city4", "city2"),
        ("multi_hop", "what is the land of land1 ?"): ("city7", "city8"),
        ("negation", "the capital of land1 is not"): ("city2", None),
        ("subject_only", "land1"): (None, None),
        ("subject_only", "land1 is"): (None, None),
    }
    assert all(q.target == "city5" for q in questions_of(REQUEST))
    plain = EditRequest("p", "the capital of land1 is", "city5")
    assert list(questions_of(plain)) == []


def test_probabilities_are_those_of_the_logits() -> None:
    model, tokenizer = toy_model(), toy_tokenizer()
    callback = OverfittingCallback([REQUEST])
    found = callback.measure(EvalContext(0, model, tokenizer))
    by_prompt = {row["prompt"]: row["measures"] for row in found.rows}

    def probability(prompt: str, word: str) -> float:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, -1].tolist()
        total = sum(math.exp(score) for score in scores)
        return math.exp(scores[tokenizer(word)["input_ids"][0]]) / total

    prompt = "what is land1 ?"
    target, right, old = (probability(prompt, word) for word in ("city5", "city3", "city2"))
    assert by_prompt[prompt]["dp@tf"] == pytest.approx(target, abs=2e-6)
    assert by_prompt[prompt]["cap@tf"] == pytest.approx(right, abs=2e-6)
    assert by_prompt[prompt]["oap@tf"] == pytest.approx(old, abs=2e-6)
    assert by_prompt[prompt]["eos@tf"] == float(right > target)
    assert by_prompt[prompt]["ams@tf"] == float(max(right, target) > old)
    # A group's value is the mean over its questions of the one request.
    both = [by_prompt["land1"]["dp@tf"], by_prompt["land1 is"]["dp@tf"]]
    value = found.values["overfitting.subject_only/dp@tf"]
    assert value == pytest.approx(sum(both) / 2, abs=2e-6)


def test_limit_and_requests_without_probes() -> None:
    callback = OverfittingCallback(toy_requests(5), limit=2, modes=("tf",))
    found = callback.measure(EvalContext(0, toy_model(), toy_tokenizer()))
    assert {row["edit_id"] for row in found.rows} == {"fact-0", "fact-1"}
    assert all("@gen" not in name for name in found.values)
