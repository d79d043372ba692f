"""Log-probabilities of stored runs: what the authors' own code says after its edits."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from lightning_edit.inference.model_call import calls_of
from tests.editors.golden import Golden

Asked = tuple[str, str, float]


def stored(example: Golden, name: str) -> Iterator[Asked]:
    """Yield prompt, answer and the sum of log-probabilities of every question of a run."""
    for request, outcome in zip(example.meta["requests_full"], example.meta[name], strict=True):
        prompt = request["prompt"].format(request["subject"])
        new, true = request["target_new"]["str"], request["target_true"]["str"]
        yield prompt, new, outcome["edit"]["target_new"]
        yield prompt, true, outcome["edit"]["target_true"]
        for text, found in zip(request["paraphrase_prompts"], outcome["para"], strict=True):
            yield text, new, found["target_new"]
        for one, found in zip(request["neighborhood"], outcome["neigh"], strict=True):
            yield one["prompt"], one["object"], found["own"]
            yield one["prompt"], new, found["target_new"]


@torch.no_grad()
def log_probability(
    model: Any, tokenizer: Any, prompt: str, answer: str, end: int | None = None
) -> float:
    """Return the sum over an answer's tokens; ``end``: where the edits take the prompt's end."""
    before = tokenizer(prompt).input_ids
    ids = tokenizer(f"{prompt} {answer}").input_ids
    calls = calls_of(model)
    place: Sequence[int] = [min(len(before) - 1 if end is None else end, len(ids) - 1)]
    with nullcontext() if calls is None else calls.within(place):
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    places = range(len(before), len(ids))
    return sum(float(logits[place - 1, ids[place]]) for place in places)
