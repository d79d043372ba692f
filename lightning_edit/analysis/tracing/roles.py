"""Average indirect effects over facts by token role, as in figure 2 of the ROME paper.

Nothing here imports torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES: tuple[str, ...] = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
LAST_SUBJECT = "last subject token"


def roles_of(subject: int, tokens: int) -> list[str]:
    """Return the role of every token, starting at the subject's first token.

    Every token has one role. The only token of a subject counts as its last subject token, and the
    token before the answer as the last token, unless it belongs to the subject.

    Args:
        subject: Number of tokens of the subject.
        tokens: Number of tokens from the subject's first token to the end of the prompt.
    """
    roles = [ROLES[1]] * (subject - 1) + [ROLES[2]]
    if subject > 1:
        roles[0] = ROLES[0]
    after = tokens - subject
    if after:
        rest = [ROLES[4]] * after
        rest[0] = ROLES[3]
        rest[-1] = ROLES[5]
        roles += rest
    return roles


@dataclass(frozen=True)
class Average:
    """Average indirect effects of one kind of state, by token role and layer.

    Args:
        effects: By role, one value per layer; a role that no fact has is absent.
        errors: Standard errors of the effects over facts.
        counts: Number of facts per role.
    """

    effects: Mapping[str, list[float]]
    errors: Mapping[str, list[float]]
    counts: Mapping[str, int]

    def peak(self, role: str | None = None) -> tuple[str, int]:
        """Return the role and layer of the largest indirect effect.

        Args:
            role: Restrict the search to this role; ``None``: all roles.
        """
        roles = [role] if role is not None else list(self.effects)
        places = [(one, layer) for one in roles for layer in range(len(self.effects[one]))]
        return max(places, key=lambda place: self.effects[place[0]][place[1]])

    def to_row(self) -> dict[str, Any]:
        """Convert to plain containers for JSON."""
        return {
            role: {
                "facts": self.counts[role],
                "effect": [round(value, 6) for value in self.effects[role]],
                "standard_error": [round(value, 6) for value in self.errors[role]],
            }
            for role in self.effects
        }


def average(rows: Sequence[Mapping[str, Any]], kind: str) -> Average:
    """Average the effects of one kind of state over facts, first over a fact's tokens per role.

    Args:
        rows: Traced facts, as in ``trace.jsonl``.
        kind: ``hidden``, ``mlp`` or ``attention``.
    """
    by_role: dict[str, list[list[float]]] = {role: [] for role in ROLES}
    for row in rows:
        effects = row["effects"][kind]
        roles = roles_of(row["subject_tokens"], len(effects))
        for role in dict.fromkeys(roles):
            own = [line for name, line in zip(roles, effects, strict=True) if name == role]
            by_role[role].append([_mean(column) for column in zip(*own, strict=True)])
    found = {role: list(zip(*lines, strict=True)) for role, lines in by_role.items() if lines}
    return Average(
        {role: [_mean(column) for column in columns] for role, columns in found.items()},
        {role: [_error(column) for column in columns] for role, columns in found.items()},
        {role: len(by_role[role]) for role in found},
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; 0 for a single value, which has none."""
    if len(values) < 2:
        return 0.0
    center = _mean(values)
    square = math.fsum((value - center) ** 2 for value in values)
    return math.sqrt(square / (len(values) - 1) / len(values))
