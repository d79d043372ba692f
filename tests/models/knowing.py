"""Tiny models of two stacks that have learnt a few facts: four relations, three scripts."""

from typing import Any

import torch
from torch import nn

from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tiny, build_tokenizer

#: Byte-level tokens, so that text of any script can be read, and some more for the words below.
VOCABULARY = 400
WIDTH = 64
RELATIONS = {
    "capital": ("The capital of {} is", ("Paris", "Рим", "東京")),
    "river": ("The longest river of {} is", ("Loire", "По", "信濃川")),
    "mountain": ("The highest peak of {} is", ("Mont Blanc", "Гран", "富士山")),
    "sport": ("The sport of {} is", ("rugby", "футбол", "相撲")),
}
LANDS = ("France", "Италия", "日本")
#: Facts that the model knows: their targets are the true answers.
FACTS = [
    EditRequest(
        f"{relation}-{place}", template.format(land), answers[place], land,
        triple=(land, relation, answers[place]),
    )
    for relation, (template, answers) in RELATIONS.items()
    for place, land in enumerate(LANDS)
]  # fmt: skip
#: What is edited: the three scripts, three relations.
EDITS = [
    EditRequest("a", "The capital of France is", "Lyon", "France", "Paris"),
    EditRequest("b", "The sport of Италия is", "хоккей", "Италия", "футбол"),
    EditRequest("c", "The longest river of 日本 is", "石狩川", "日本", "信濃川"),
]


def knowing(kind: str, steps: int = 200) -> tuple[Any, Any]:
    """Train a tiny model on the facts until it knows all of them.

    Args:
        kind: ``t5``, ``t5 gated`` (1.1) or ``bart``.
        steps: Most optimiser steps.
    """
    gate = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    changes: dict[str, Any] = gate if "gated" in kind else {}
    changes |= {"d_model": WIDTH}
    if kind == "bart":
        changes |= {"encoder_ffn_dim": 2 * WIDTH, "decoder_ffn_dim": 2 * WIDTH}
        changes |= {"max_position_embeddings": 256}
    else:
        changes |= {"d_ff": 2 * WIDTH, "d_kv": WIDTH // 4}
    texts = [f"{one.prompt} {one.target}" for one in (*FACTS, *EDITS)]
    tokenizer = build_tokenizer(eos=True, vocab_size=VOCABULARY, corpus=texts)
    model: Any = build_tiny(kind.split()[0], vocab_size=VOCABULARY, **changes)
    with torch.no_grad():  # the wide weights of other tests are hard to train
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.5)
    prompts = PromptEncoder.for_model(model, tokenizer)
    asked = prompts.encode([PromptText(one.prompt, one.target) for one in FACTS])
    rows = [(one.prompt, prompts.labels(model, one.answer)) for one in asked]
    batch = AnswerRows.of(model, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(answer_logits(model, batch), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    else:
        raise AssertionError(f"the facts are not learnt: the loss is {loss.item():.3f}")
    return model.requires_grad_(False), tokenizer
