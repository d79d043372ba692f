"""An adapter that decides once a prompt, on small models, for the tests of such edits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_edit.inference.model_call import ModelCall
from lightning_edit.inference.module_adapter import ModuleAdapter, attach
from lightning_edit.models.view import resolve
from tests.models.tiny import build_tiny, build_tokenizer

MODELS = ["gpt2", "llama", "gemma3_text", "gpt_neox", "opt", "qwen3"]
PROMPTS = ["The capital of France is", "Marseille lies in", "What is the capital of Italy? Rome"]


class Shift(ModuleAdapter):
    """Adds a vector to all tokens of a row whose prompt's last state has a positive entry."""

    by_prompt = True

    def __init__(self, size: int, entry: int = 0) -> None:
        self.entry = entry
        self.vector = torch.linspace(-40.0, 40.0, size)
        self.decided: list[Tensor] = []
        self.noted: list[Tensor] | None = None  # prompts of the calls that read some

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        assert call is not None
        if self.noted is not None and call.begins:
            self.noted.append(call.prompt)

        def decide() -> Tensor:
            self.decided.append(call.at_ends(hidden)[:, self.entry] > 0)
            return self.decided[-1]

        return output + self.vector * call.decide("shift", decide)[:, None, None]


def site(model: Any) -> str:
    return resolve(model).down_projection(1)


def shifted(kind: str) -> tuple[Any, Any, Shift]:
    """Return a model with an adapter that acts on one of the prompts, by a clear decision."""
    model, tokenizer = build_tiny(kind), build_tokenizer(bos=True)
    states = torch.stack([end_state(kind, tokenizer, prompt) for prompt in PROMPTS])
    mixed = (states > 0).any(0) & (states < 0).any(0)
    entry = int(torch.where(mixed, states.abs().amin(0), -1.0).argmax())
    adapter = Shift(resolve(model).hidden_size, entry)
    attach(model, {site(model): adapter})
    return model, tokenizer, adapter


def end_state(kind: str, tokenizer: Any, prompt: str) -> Tensor:
    model, seen = build_tiny(kind), []
    module = model.get_submodule(site(model))
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.tensor(ids_of(tokenizer, [prompt])))
    return seen[0].detach().reshape(-1, seen[0].shape[-1])[-1]


def ids_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer(text).input_ids for text in texts]


def padded(rows: list[list[int]], left: bool) -> dict[str, Tensor]:
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ids = [p + r if left else r + p for p, r in zip(pads, rows, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p)
        for p, r in zip(pads, rows, strict=True)
    ]
    found = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    # As `generate` gives them: GPT-2's call alone would count padding.
    return found | {"position_ids": (found["attention_mask"].cumsum(1) - 1).clamp_min(0)}
