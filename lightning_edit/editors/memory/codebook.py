"""Codebook of GRACE: keys with a radius (deferral ball), each with a value; radii shrink and grow.

Axis names: ``n`` -- entries; ``b`` -- rows; ``t`` -- positions; ``d_in``/``d_out`` -- width of the
module's input and output.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.memory.base import Memory
from lightning_edit.edits.delta import Delta
from lightning_edit.inference.model_call import ModelCall
from lightning_edit.inference.module_adapter import ModuleAdapter

Expansion = Literal["coverage", "moving_average"]
Replacement = Literal["replace_last", "replace_prompt", "replace_all"]
Label = tuple[int, ...]

#: What the radius of the older key loses beside the new one, as in the authors' code.
_GAP = 1e-5
#: Keys that are closer than this share of their norm are readings of one prompt (rounding).
_SAME = 1e-4
#: Name of the decision.
_NAME = "codebook"


@dataclass
class Ball:
    """An entry: all queries within the radius of the key read the value.

    Args:
        key: Activation at the last token of an edited prompt, (d_in,).
        value: What the module returns instead, (d_out,).
        radius: Radius of the ball (epsilon).
        label: Token ids of the answer.
    """

    key: Float[Tensor, " d_in"]
    value: Float[Tensor, " d_out"]
    radius: float
    label: Label


class Match(NamedTuple):
    """What an edit meets in a codebook.

    Args:
        kind: ``far``: no ball near. ``same``: a near one with the same label. ``conflict``: a near
            one with another label. ``again``: the same prompt, edited before to another label.
        entry: Number of the nearest entry; -1 without one.
        distance: Distance to it.
    """

    kind: Literal["far", "same", "conflict", "again"]
    entry: int
    distance: float


class Codebook(Memory):
    """Entries that the edits in force come to, by the rules of GRACE.

    Args:
        radius: Radius of a new entry (epsilon_init), where its edit holds no other.
        expansion: What an edit does to a near ball of the same label: ``coverage`` widens it up to
            the edit; ``moving_average`` moves its key halfway as well.
        same_label: Whether two labels are the same; ``None``: equal token ids.
    """

    def __init__(
        self,
        radius: float,
        expansion: Expansion,
        same_label: Callable[[Label, Label], bool] | None = None,
    ) -> None:
        self.radius = radius
        self.expansion = expansion
        self.same_label = same_label or operator.eq
        self.balls: list[Ball] = []

    def nearest(self, query: Float[Tensor, " d_in"]) -> tuple[int, float]:
        """Return the nearest entry and its distance (L2); -1 and infinity if there is none.

        Args:
            query: Activation at a prompt's last token.
        """
        if not self.balls:
            return -1, float("inf")
        distances = torch.stack([(ball.key - query).norm() for ball in self.balls])
        found = int(distances.argmin())
        return found, float(distances[found])

    def match(
        self, query: Float[Tensor, " d_in"], label: Label, radius: float | None = None
    ) -> Match:
        """Return what an edit meets.

        Args:
            query: Activation at the last token of its prompt.
            label: Token ids of its answer.
            radius: Radius of its ball; ``None``: that of the codebook.
        """
        entry, distance = self.nearest(query)
        own = self.radius if radius is None else radius
        if entry < 0 or distance > own + self.balls[entry].radius:
            return Match("far", entry, distance)
        if self.same_label(label, self.balls[entry].label):
            return Match("same", entry, distance)
        again = distance <= _SAME * float(query.norm())
        return Match("again" if again else "conflict", entry, distance)

    def add(self, delta: Delta) -> None:
        """Add the entries of an edit, and fit the radii of those it meets.

        Args:
            delta: An edit with ``key``, ``value``, ``label`` and ``radius``, one row per request;
                edits of earlier versions hold no radius.
        """
        state = delta.state
        count = len(state["key"])
        radii = state["radius"].tolist() if "radius" in state else [None] * count
        listed = zip(state["key"], state["value"], state["label"], radii, strict=True)
        for key, value, ids, radius in listed:
            self.insert(key, value, tuple(one for one in ids.tolist() if one >= 0), radius)

    def insert(
        self,
        key: Float[Tensor, " d_in"],
        value: Float[Tensor, " d_out"],
        label: Label,
        radius: float | None = None,
    ) -> None:
        """Insert one entry.

        Args:
            key: Activation at the last token of its prompt.
            value: What was learnt for it.
            label: Token ids of its answer.
            radius: Radius of its ball, where no other is near; ``None``: that of the codebook.
        """
        own = self.radius if radius is None else radius
        found = self.match(key, label, own)
        if found.kind in ("far", "conflict"):
            self.balls.append(Ball(key, value, own, label))
        if found.kind == "far":
            return
        old = self.balls[found.entry]
        if found.kind == "again":
            self.balls[found.entry] = Ball(key, value, old.radius, label)
        elif found.kind == "conflict":
            # The balls touch and do not overlap.
            old.radius = found.distance / 2 - _GAP
            self.balls[-1].radius = found.distance / 2
        else:
            old.value = value
            if found.distance > old.radius:
                old.radius = found.distance
                if self.expansion == "moving_average":
                    old.key = 0.5 * old.key + 0.5 * key


class CodebookAdapter(ModuleAdapter):
    """Replaces a module's output by the value of the ball in which a prompt's last token lies.

    Args:
        codebook: The entries, of which it keeps a copy.
        replacement: Which tokens get the value.
    """

    by_prompt = True

    def __init__(self, codebook: Codebook, replacement: Replacement) -> None:
        self.keys = torch.stack([ball.key for ball in codebook.balls])
        self.values = torch.stack([ball.value for ball in codebook.balls])
        self.radii = torch.tensor([ball.radius for ball in codebook.balls])
        self.replacement: Replacement = replacement

    def choose(self, query: Float[Tensor, "b d_in"]) -> Tensor:
        """Return the entry in whose ball each query lies, -1 if in none.

        Args:
            query: Activations at prompts' last tokens.
        """
        keys, radii = self.keys.to(query.device), self.radii.to(query.device)
        wide = query.to(keys.dtype)
        # Differences, not a product of matrices: near keys would cancel there.
        distances = torch.stack([(keys - row).norm(dim=1) for row in wide])
        least, entry = distances.min(1)
        return torch.where(least <= radii[entry], entry, -1)

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        """Return the output with values in place of the replaced tokens."""
        assert call is not None
        chosen = call.decide(_NAME, lambda: self.choose(call.at_ends(hidden)))
        if not bool((chosen >= 0).any()):
            return output
        value = self.values.to(output.device)[chosen].to(output.dtype)
        where = replaced(call, self.replacement) & (chosen >= 0)[:, None]
        return torch.where(where[..., None], value[:, None], output)


def replaced(call: ModelCall, replacement: Replacement) -> Tensor:
    """Return which tokens of a call get an entry's value, (b, t).

    Args:
        call: The call.
        replacement: ``replace_last``: the prompt's last token. ``replace_prompt``: the tokens
            before it. ``replace_all``: every token, those of the answer included.
    """
    if replacement == "replace_all":
        return call.real
    prompt = call.prompt
    if not call.begins:
        return prompt  # a step of a generation: no token of the prompt
    steps = torch.arange(prompt.shape[1], device=prompt.device)
    last = steps == call.ends[:, None]
    return prompt & (last if replacement == "replace_last" else ~last)
