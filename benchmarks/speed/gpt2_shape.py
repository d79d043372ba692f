"""A language model of GPT-2 small's shape with random weights, and made-up requests for it.

Speed depends on shapes alone, so nothing has to be downloaded to measure it. Lengths follow
COUNTERFACT under GPT-2's tokenizer: 5 to 16 tokens a prompt, 2 to 4 a subject, 1 or 2 an answer.
"""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weight, weights_hash
from lightning_edit.statistics.moments import Moments
from lightning_edit.types import EditRequest, Probe

_END = "<|endoftext|>"
_WORDS = [_END, ".", "The", "Therefore", "Because", "I", "You", "is", "a"]
_WORDS += [f"w{number}" for number in range(50257 - len(_WORDS))]


def build(small: bool = False) -> tuple[Any, Any]:
    """Return the model and a tokenizer with one token a word.

    Args:
        small: Two narrow blocks instead of twelve wide ones, to try the program out.
    """
    torch.manual_seed(0)
    narrow = {"n_layer": 4, "n_embd": 64, "n_head": 2} if small else {}
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **narrow)
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    words = {word: number for number, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=_END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END)


def templates(count: int, length: int) -> list[str]:
    """Return context templates of as many words as the authors' have tokens."""
    draw = random.Random(1)
    # The tokenizer splits at blanks only, so the full stop stands alone.
    return ["{}", *(f"{_text(draw, length)} . {{}}" for _ in range(count))]


def requests(count: int) -> list[EditRequest]:
    """Return made-up facts with two probes each."""
    draw = random.Random(0)
    made = []
    for number in range(count):
        subject = _text(draw, draw.randint(2, 4))
        start, end = _text(draw, draw.randint(0, 6)), _text(draw, draw.randint(3, 6))
        target = _text(draw, draw.choice([1, 1, 2]))
        prompt = f"{start} {subject} {end}".strip()
        around = tuple(Probe.of("neighborhood", _text(draw, 9), _text(draw, 1)) for _ in range(2))
        made.append(EditRequest(str(number), prompt, target, subject, probes=around))
    return made


def statistics(model: Any, layers: list[int], path: Path) -> str:
    """Write made-up second moments of the layers' width to a file and return its path."""
    view, generator = resolve(model), torch.Generator().manual_seed(2)
    matrices = {}
    for layer in layers:
        width = weight(model, view.parameter(layer)).shape[1]
        keys = torch.randn(width, 2 * width, generator=generator)
        matrices[view.down_projection(layer)] = keys @ keys.mT / (2 * width)
    Moments(matrices, 2 * width, weights_hash(model), "made up").save(path)
    return str(path)


def _text(draw: random.Random, length: int) -> str:
    return " ".join(f"w{draw.randrange(50000)}" for _ in range(length))
