"""Prefix caching by a prefix tree: shared prefixes run once, under a tree attention mask.

All tokens are in one row, where each attends to those before it in its own sequences. A shared
prefix is stored once, so a prompt with ten answers is computed once.

Axis names: ``m`` -- tokens of the row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lightning_edit.inference.packed.backend import NotPackableError, packable, replaced_attention
from lightning_edit.models.view import configs_of

Ids = tuple[int, ...]

#: Pairs of places of all sequences up to which a tree's mask is made of them all at once; more take
#: longer than token by token, and hundreds of megabytes.
_MOST_PAIRS = 2**20


@dataclass(frozen=True)
class TokenTree:
    """Prefix tree (trie) of token sequences, laid out in one row.

    Make it with :meth:`of`.

    Args:
        ids: The tokens.
        positions: Position id of each: the number of tokens before it in its sequences.
        places: Row indices of each sequence's tokens.
    """

    ids: Int[Tensor, "1 m"]
    positions: Int[Tensor, "1 m"]
    places: tuple[Ids, ...]

    @classmethod
    def of(cls, sequences: Sequence[Ids], device: torch.device | str = "cpu") -> "TokenTree":
        """Build the prefix tree of token sequences.

        Args:
            sequences: Token ids, none of them empty.
            device: Device of the tensors.
        """
        known: dict[tuple[int, int], int] = {}
        ids: list[int] = []
        positions: list[int] = []
        places = []
        for sequence in sequences:
            path: list[int] = []
            for token in sequence:
                before = path[-1] if path else -1
                number = known.setdefault((before, token), len(ids))
                if number == len(ids):
                    ids.append(token)
                    positions.append(len(path))
                path.append(number)
            places.append(tuple(path))
        tokens, steps = torch.tensor([[ids], [positions]], device=device)
        return cls(tokens, steps, tuple(places))

    def attention_mask(self) -> Bool[Tensor, "m m"]:
        """Return the tree attention mask: each token sees itself and its prefixes' tokens."""
        size = self.ids.shape[1]
        longest = max(map(len, self.places))
        if len(self.places) * longest**2 > _MOST_PAIRS:
            visible = self._by_parents()
        else:
            # One extra token, which no other attends to, pads short sequences.
            paths = torch.tensor([[*path, *[size] * (longest - len(path))] for path in self.places])
            visible = torch.zeros(size + 1, size + 1, dtype=torch.bool)
            below = torch.ones(longest, longest, dtype=torch.bool).tril()
            later = paths[:, :, None].expand(-1, -1, longest)[:, below]
            earlier = paths[:, None].expand(-1, longest, -1)[:, below]
            visible[later, earlier] = True
            visible = visible[:size, :size]
        return visible.to(self.ids.device)

    def _by_parents(self) -> Bool[Tensor, "m m"]:
        """Return the mask token by token: each sees what the one before it sees, and itself."""
        before = {later: earlier for path in self.places for earlier, later in pairwise(path)}
        visible = torch.eye(self.ids.shape[1], dtype=torch.bool)
        # Tokens are numbered so that each comes after the one before it in its sequences.
        for later, earlier in sorted(before.items()):
            visible[later] |= visible[earlier]
        return visible


def common_prefix_length(first: Ids, second: Ids) -> int:
    """Return the length of the common prefix of two sequences."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def prefix_batches(
    sequences: Sequence[Ids], max_rows: int, max_tokens: int, long_prefixes: bool = False
) -> list[list[int]]:
    """Batch sequences by shared prefixes.

    Args:
        sequences: Token ids.
        max_rows: Maximum number of sequences in a batch.
        max_tokens: Maximum number of tokens in its tree, unless a single sequence has more.
        long_prefixes: Let a tree have twice as many tokens as all of its sequences share, where
            that is more: else a long prefix would be computed for every few sequences again.

    Returns:
        Indices of the sequences, by batch.
    """
    groups: list[list[int]] = []
    tokens = shared = 0
    order = sorted(range(len(sequences)), key=lambda number: sequences[number])
    for place, number in enumerate(order):
        own = sequences[number]
        common = common_prefix_length(sequences[order[place - 1]], own) if place else 0
        new = len(own) - common
        # What all share of a sorted group is the least that two neighbours share.
        common = min(common, shared) if groups and len(groups[-1]) > 1 else common
        most = max(max_tokens, 2 * common) if long_prefixes else max_tokens
        if not groups or len(groups[-1]) == max_rows or tokens + new > most:
            groups.append([])
            tokens, new, common = 0, len(own), len(own)
        groups[-1].append(number)
        tokens += new
        shared = common
    return groups


@contextmanager
def tree_attention(model: Any, tree: TokenTree) -> Iterator[None]:
    """Use tree attention in a model; call the model once inside the ``with`` block.

    Args:
        model: A decoder-only Hugging Face model; call it with the tree's ids and positions, without
            a cache and without a mask.
        tree: The sequences.

    Raises:
        NotPackableError: If the model's attention cannot be replaced by tree attention.
    """
    if not packable(model):
        raise NotPackableError
    visible = tree.attention_mask()
    called: list[nn.Module] = []

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        called.append(module)
        mask = visible.to(query.device)
        found = nn.functional.scaled_dot_product_attention(
            query, key, value, mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        return found.transpose(1, 2)

    with replaced_attention(configs_of(model), attend, int(tree.positions.max()) + 1):
        yield
    # Any other layer that mixes tokens would ignore the tree.
    if len(called) != getattr(model.config.get_text_config(), "num_hidden_layers", None):
        raise NotPackableError
