"""The batched search that touches only what changes equals the plain one, on every family."""

from typing import Any

import pytest

from lightning_edit.editors.search import Objective, search_targets
from lightning_edit.editors.texts import Text, essence_texts, merge_watched, rewriting_texts
from lightning_edit.encoding import encode_batch
from lightning_edit.models.view import resolve
from lightning_edit.types import EditBatch, EditRequest
from tests.editors.plain import plain_target
from tests.models.tiny import TINY, build_tokenizer

DECODERS = sorted(set(TINY) - {"t5", "bart"})
TEMPLATES = ["{}", "Rome. {}", "The mother tongue of. {}"]
REQUESTS = [
    EditRequest("0", "The capital of France is", "Rome", "France"),
    EditRequest("1", "Lyon lies in", "Italy too", "Lyon"),
    EditRequest(
        "2", "What is the mother tongue of Danielle Darrieux?", "Paris", "Danielle Darrieux"
    ),
    EditRequest("3", "A", "Rome", "A"),
]
OBJECTIVE = Objective(
    steps=8, lr=0.5, kl_factor=0.0625, weight_decay=0.5, clamp=2.0, threshold=0.05
)


def material(tokenizer: Any, position: str) -> tuple[EditBatch, list[Text], list[Text]]:
    batch = encode_batch(tokenizer, REQUESTS)
    return (
        batch,
        rewriting_texts(tokenizer, batch, TEMPLATES),
        essence_texts(tokenizer, batch, position),
    )


@pytest.mark.parametrize("site", ["mlp", "block"])
@pytest.mark.parametrize("family", DECODERS)
def test_equals_plain_search(family: str, site: str) -> None:
    view = resolve(TINY[family]().requires_grad_(False))
    tokenizer = build_tokenizer(bos=family in {"llama", "gemma2"})
    _, texts, watched = material(tokenizer, "subject_last")
    found = search_targets(view, merge_watched(texts, watched), 1, site, OBJECTIVE, 512)
    for number, wanted in enumerate(found.wanted):
        own = [text for text in texts if text.request == number]
        plain = plain_target(view, own, watched[number], 1, site, OBJECTIVE)
        assert (wanted - plain).norm() < 1e-4 * plain.norm()
