"""Hard negatives: requests that read alike, by the similarity of their prompts.

Axis names: ``n`` -- requests; ``d`` -- width of a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.functional.padding import pad
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.types import EditRequest


@dataclass(frozen=True)
class Neighbours:
    """Nearest neighbours of requests, for questions that are hard to tell from them.

    Args:
        vectors: Vectors of the requests' prompts, of length 1.
        place: Number of each request, by its id.
        exclude: Closest neighbours that are left out: the fact itself in other words.
        count: Neighbours behind them that are drawn from.
        temperature: Of the draw, by cosine similarity.
    """

    vectors: Float[Tensor, "n d"]
    place: dict[str, int]
    exclude: int = 25
    count: int = 100
    temperature: float = 0.1

    def draw(self, request: EditRequest, rng: Random) -> int | None:
        """Draw the number of a neighbour; ``None`` if there are too few requests.

        Args:
            request: One of the requests.
            rng: Random generator.
        """
        own = self.place[request.id]
        similar = self.vectors @ self.vectors[own]
        similar[own] = torch.inf  # itself is the closest, whatever the rounding
        order = similar.argsort(descending=True)[1 + self.exclude :][: self.count]
        if not len(order):
            return None
        weights = (similar[order] / self.temperature).softmax(0).tolist()
        numbers: list[int] = order.tolist()
        return rng.choices(numbers, weights)[0]


@torch.no_grad()
def prompt_vectors(
    model: Any, prompts: PromptEncoder, texts: Sequence[str], batch_size: int = 64
) -> Float[Tensor, "n d"]:
    """Return the mean last hidden state of each text, centred and of length 1.

    Args:
        model: A language model; of two stacks the encoder is read.
        prompts: Its prompt encoder.
        texts: The texts.
        batch_size: Texts per pass.
    """
    rows = prompts.prompts(texts)
    reader, options = model, {"use_cache": False}
    if model.config.is_encoder_decoder:
        reader, options = model.get_encoder(), {}
    parts = []
    for start in range(0, len(rows), batch_size):
        ids, mask = (one.to(model.device) for one in pad(rows[start : start + batch_size]))
        output = reader(input_ids=ids, attention_mask=mask, output_hidden_states=True, **options)
        states = output.hidden_states[-1].float() * mask[..., None]
        parts.append((states.sum(1) / mask.sum(1, keepdim=True)).cpu())
    found = torch.cat(parts)
    return torch.nn.functional.normalize(found - found.mean(0), dim=-1)
