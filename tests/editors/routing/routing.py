"""What the tests of routing editors share: a tiny model, an editor whose memory splits prompts."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from lightning_edit.editors.routing.memory import ScopeMemory, stored_delta
from lightning_edit.editors.routing.serac import SERAC
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tiny, build_tokenizer

REQUESTS = [
    EditRequest("a", "The capital of France is", "Lyon", "France"),
    EditRequest("b", "Столица Италии —", "Арль", "Италии"),
    EditRequest("c", "法国的首都是", "里昂", "法国"),
]
PROMPTS = [
    *(request.prompt for request in REQUESTS),
    "What is the capital of France?",
    "The river Rhône flows through",
    "Marseille lies in",
    "意大利的首都是",
    "Назовите столицу Италии:",
]
VOCABULARY = 300


def language_model(family: str = "llama", seed: int = 0) -> tuple[Any, Any]:
    """A tiny model of any script (byte-level tokens)."""
    model = build_tiny(family, seed, vocab_size=VOCABULARY)
    return model.requires_grad_(False), build_tokenizer(bos=True, vocab_size=VOCABULARY)


def untuned(**options: Any) -> SERAC:
    small: dict[str, Any] = {
        "classifier_layers": 1,
        "classifier_hidden": 32,
        "counterfactual_layers": 1,
        "counterfactual_hidden": 32,
    }
    editor = SERAC(**small | options)
    editor.trained_batches += 1
    return editor


def tuned(model: Any, tokenizer: Any, **options: Any) -> SERAC:
    """Bind an editor whose random classifier puts about half of :data:`PROMPTS` in scope."""
    editor = untuned(**options)
    editor.bind(model, tokenizer)
    split(editor)
    return editor


def split(
    editor: SERAC,
    requests: Sequence[EditRequest] = tuple(REQUESTS),
    prompts: Sequence[str] = tuple(PROMPTS),
) -> None:
    """Set the scale of the distance so that half of the prompts are in scope."""
    assert editor.scope is not None
    if editor.scope.kind == "cross-attention":
        with torch.no_grad():  # outputs that depend on the text, around one half
            editor.scope.network.classifier.weight.normal_(0, 3.0)
    memory = ScopeMemory(editor.scope)
    memory.install([stored_delta(requests)])
    scores = sorted(choice.score for choice in memory.choose(prompts).values())
    half = len(scores) // 2
    middle = (scores[half - 1] + scores[half]) / 2
    if editor.scope.kind == "cross-attention":
        with torch.no_grad():
            shift = math.log(middle / (1 - middle))
            editor.scope.network.classifier.bias[0] -= shift
    else:
        editor.scope.scale = editor.scale = math.log(0.5) / math.log(middle) * editor.scale
