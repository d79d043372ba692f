"""What tests on models of two stacks share: tiny models, a tokenizer of every byte, facts."""

from typing import Any

from lightning_edit.types import EditRequest, Probe
from tests.models.tiny import build_tiny, build_tokenizer

#: T5 v1.0 (one up-projection, tied head), T5 v1.1 (gated, own head) and BART.
MODELS = ["t5", "t5 gated", "bart"]
VOCAB = 320


def build(kind: str, seed: int = 0, **changes: Any) -> Any:
    """Return a tiny model of a kind: three encoder blocks and two decoder blocks."""
    gate = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    options = {"vocab_size": VOCAB, **(gate if "gated" in kind else {}), **changes}
    model = build_tiny(kind.split()[0], seed, **options)
    return model.requires_grad_(False)


def tokenizer() -> Any:
    """Return a tokenizer with EOS after a text, that reads every script."""
    return build_tokenizer(eos=True, vocab_size=VOCAB)


#: Subjects of unequal length, and answers in four scripts.
LANDS = (
    ("France", "Lyon"),
    ("the long river of Arles", "Rome"),
    ("Италии", "Лион"),
    ("日本", "京都"),
    ("Κρήτη", "Ηράκλειο"),
)


def facts() -> list[EditRequest]:
    """Return five facts, each with a rephrase and a probe that must stay."""
    return [
        EditRequest(
            f"e{number}",
            f"The capital of {land} is",
            city,
            land,
            LANDS[(number + 1) % 5][1],
            (f"{land} has its capital in",),
            (Probe.of("neighborhood", f"The river of {LANDS[(number + 2) % 5][0]} is", "Rhône"),),
        )
        for number, (land, city) in enumerate(LANDS)
    ]
