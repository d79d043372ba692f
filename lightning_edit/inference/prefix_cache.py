"""KV cache of prefixes that prompts share: each is computed once, and generation goes on from it.

Prompts with the same facts or demonstrations in front of them differ in their last tokens only, and
reading each as a whole is nearly all the work of a short answer.

Axis names: ``n`` -- rows of a batch; ``u`` -- distinct prefixes; ``h`` -- heads; ``t`` -- tokens;
``d`` -- head width.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lightning_edit.functional.padding import pad
from lightning_edit.inference.hooks import select_head_positions
from lightning_edit.inference.prefix_tree import Ids, common_prefix_length

#: Least number of tokens of each row that a cache must hold; fewer are read in no time.
_MIN_CACHED = 64
#: Types of models that have no positions but a bias by distance (ALiBi).
_BIASED_BY_DISTANCE = ("bloom", "mpt")


@dataclass(frozen=True)
class SharedPrefixes:
    """Prefixes of a batch of prompts, of which each is computed once.

    Make it with :meth:`of`.

    Args:
        prefixes: The distinct prefixes.
        members: Index of each row's prefix.
        starts: Padding at the left of each row.
        cached: Number of columns of the padded batch that a cache holds.
    """

    prefixes: tuple[Ids, ...]
    members: Ids
    starts: Ids
    cached: int

    @classmethod
    def of(cls, rows: Sequence[Ids]) -> "SharedPrefixes | None":
        """Find the prefixes of a batch that is padded on the left.

        Args:
            rows: Token ids.

        Returns:
            The prefixes; ``None`` if they would spare less than half of the batch's tokens.
        """
        longest = max(map(len, rows))
        starts = tuple(longest - len(row) for row in rows)
        prefixes: list[Ids] = []
        members = [0] * len(rows)
        ends = [0] * len(rows)
        for group in _alike(rows):
            # The last token of each row is fed, since its prediction is needed.
            shared = min(
                *(len(rows[number]) - 1 for number in group),
                *(common_prefix_length(rows[one], rows[other]) for one, other in pairwise(group)),
                longest,
            )
            for number in group:
                members[number] = len(prefixes)
                ends[number] = starts[number] + shared
            prefixes.append(rows[group[0]][:shared])
        cached = min(ends)
        longest_prefix = max(map(len, prefixes))
        read = len(prefixes) * longest_prefix + len(rows) * (longest - cached)
        if cached - max(starts) < _MIN_CACHED or 2 * read > len(rows) * longest:
            return None
        return cls(tuple(prefixes), tuple(members), starts, cached)

    def fit(self, model: Any) -> bool:
        """Return whether a model keeps these prefixes as keys and values of all of their tokens.

        Not if it keeps something else (a recurrent state), or less (a sliding window that is not
        longer than they are), or counts positions by itself from what it is given.

        Args:
            model: A decoder-only Hugging Face model.
        """
        config = model.config.get_text_config(decoder=True)
        named = "position_ids" in inspect.signature(model.forward).parameters
        if not named and config.model_type not in _BIASED_BY_DISTANCE:
            return False
        longest = max(map(len, self.prefixes))
        kinds = DynamicCache(config=config).layers
        return all(
            type(kind) is DynamicLayer
            or (type(kind) is DynamicSlidingWindowLayer and longest < kind.sliding_window)
            for kind in kinds
        )

    def read(self, model: Any) -> DynamicCache | None:
        """Compute the prefixes and return the KV cache of the batch's first columns.

        Args:
            model: A decoder-only Hugging Face model in evaluation mode, see :meth:`fit`.

        Returns:
            A cache of ``cached`` columns a row, in which padding stands where it stands in the
            batch; ``None`` if the model keeps something else than its settings say.
        """
        ids, mask = pad(self.prefixes)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if model.config.get_text_config(decoder=True).model_type not in _BIASED_BY_DISTANCE:
            # As `generate` counts them.
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        device = model.get_input_embeddings().weight.device
        # The head may stand on another device than the embedding; indices may stay on the CPU.
        last = torch.tensor([len(prefix) - 1 for prefix in self.prefixes])
        with torch.no_grad(), select_head_positions(model, (torch.arange(len(last)), last)):
            output = model(
                **{name: value.to(device) for name, value in inputs.items()}, use_cache=True
            )
        cache = getattr(output, "past_key_values", None)
        layers: list[Any] = cache.layers if type(cache) is DynamicCache else []
        if not layers or not all(_keeps_all(layer, ids.shape[1]) for layer in layers):
            return None
        for layer in layers:
            layer.keys = self._spread(layer.keys)
            layer.values = self._spread(layer.values)
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = self.cached
        return cache

    def _spread(self, states: Float[Tensor, "u h t d"]) -> Float[Tensor, "n h c d"]:
        """Give each row the states of its prefix, moved behind its padding."""
        rows = states.new_zeros(len(self.members), states.shape[1], self.cached, states.shape[3])
        for row, (prefix, start) in enumerate(zip(self.members, self.starts, strict=True)):
            rows[row, :, start:] = states[prefix, :, : self.cached - start]
        return rows


def _keeps_all(layer: Any, tokens: int) -> bool:
    """Return whether a layer of a KV cache holds the keys and values of so many tokens.

    A sliding window keeps one token less than it is wide.
    """
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
        return False
    return bool(layer.keys.shape[-2] == tokens)


def _alike(rows: Sequence[Ids]) -> list[list[int]]:
    """Group rows that share most of their prefixes.

    Sorted by tokens, neighbours share the most. A group ends where two share less than half of what
    one of them shares with its other neighbour.
    """
    order = sorted(range(len(rows)), key=lambda number: rows[number])
    common = [
        0,
        *(common_prefix_length(rows[one], rows[other]) for one, other in pairwise(order)),
        0,
    ]
    groups = [[order[0]]]
    for place in range(1, len(order)):
        if 2 * common[place] < max(common[place - 1], common[place + 1]):
            groups.append([])
        groups[-1].append(order[place])
    return groups
