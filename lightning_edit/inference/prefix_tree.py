"""Token sequences that begin alike, run once for what they share.

All tokens stand in one row, where each sees those that go before it in its own sequences. What two
sequences begin with is there once, so a question that is asked with ten answers is read once.

Axis names: ``m`` -- tokens of the row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lightning_edit.inference.packed.backend import NotPackableError, packable, replaced_attention

Ids = tuple[int, ...]


@dataclass(frozen=True)
class TokenTree:
    """Sequences as the paths of a tree.

    Make it with :meth:`of`.

    Args:
        ids: The tokens.
        positions: How many tokens go before each in its sequences.
        places: Where the tokens of each sequence stand in the row.
    """

    ids: Int[Tensor, "1 m"]
    positions: Int[Tensor, "1 m"]
    places: tuple[Ids, ...]

    @classmethod
    def of(cls, sequences: Sequence[Ids], device: torch.device | str = "cpu") -> "TokenTree":
        """Lay sequences out.

        Args:
            sequences: Token ids, none of them empty.
            device: Where the tensors go.
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

    def seen(self) -> Bool[Tensor, "m m"]:
        """Return which tokens each one sees: those before it in its sequences, and itself."""
        size = self.ids.shape[1]
        longest = max(map(len, self.places))
        # A further token that nobody sees fills up short sequences.
        paths = torch.tensor([[*path, *[size] * (longest - len(path))] for path in self.places])
        seen = torch.zeros(size + 1, size + 1, dtype=torch.bool)
        below = torch.ones(longest, longest, dtype=torch.bool).tril()
        later = paths[:, :, None].expand(-1, -1, longest)[:, below]
        earlier = paths[:, None].expand(-1, longest, -1)[:, below]
        seen[later, earlier] = True
        return seen[:size, :size].to(self.ids.device)


def shared(first: Ids, second: Ids) -> int:
    """Return how many tokens two sequences begin with alike."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def batches(sequences: Sequence[Ids], most_rows: int, most_tokens: int) -> list[list[int]]:
    """Group sequences that begin alike.

    Args:
        sequences: Token ids.
        most_rows: Most sequences of a group.
        most_tokens: Most tokens of its tree, unless a single sequence has more.

    Returns:
        Numbers of the sequences, by group.
    """
    groups: list[list[int]] = []
    tokens = 0
    order = sorted(range(len(sequences)), key=lambda number: sequences[number])
    for place, number in enumerate(order):
        own = sequences[number]
        new = len(own) - (shared(sequences[order[place - 1]], own) if place else 0)
        if not groups or len(groups[-1]) == most_rows or tokens + new > most_tokens:
            groups.append([])
            tokens, new = 0, len(own)
        groups[-1].append(number)
        tokens += new
    return groups


@contextmanager
def attending_tree(model: Any, tree: TokenTree) -> Iterator[None]:
    """Let a model's attention follow the paths of a tree; call it once inside the ``with`` block.

    Args:
        model: A decoder-only Hugging Face model; call it with the tree's ids and positions, without
            a cache and without a mask.
        tree: The sequences.

    Raises:
        NotPackableError: If the model's attention cannot be told which tokens belong together.
    """
    if not packable(model):
        raise NotPackableError
    seen = tree.seen()
    ran: list[nn.Module] = []

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        ran.append(module)
        mask = seen.to(query.device)
        found = nn.functional.scaled_dot_product_attention(
            query, key, value, mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        return found.transpose(1, 2)

    with replaced_attention(model, attend, int(tree.positions.max()) + 1):
        yield
    # Whatever else mixes tokens would not know the paths.
    if len(ran) != getattr(model.config.get_text_config(), "num_hidden_layers", None):
        raise NotPackableError
