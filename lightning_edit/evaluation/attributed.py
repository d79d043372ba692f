"""Attribution of a fact's change to edits: the asked fact, the effect of each edit, JSON rows.

Nothing here imports torch, so that reports read it without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import fsum, inf, isfinite, nan
from typing import Any

from lightning_edit.exceptions import DataError
from lightning_edit.types.subjects import locate_subject

SCHEMA = "lightning-edit-attribution/1"


@dataclass(frozen=True)
class AskedFact:
    """A fact whose change is attributed.

    Args:
        prompt: Text before the answer.
        answer: The answer whose probability is attributed.
        subject: Subject as spelled in the prompt, whose last token is the fact's key; ``None``: the
            key is the token at which the edits change the layer most.
        edit_id: The edit that the fact is a probe of; ``None`` if it is none.
        kind: Kind of the probe; ``None`` if it is none.
        separator: Text between prompt and answer; ``None``: by rule.
    """

    prompt: str
    answer: str
    subject: str | None = None
    edit_id: str | None = None
    kind: str | None = None
    separator: str | None = None

    @classmethod
    def of(cls, value: Any) -> "AskedFact":
        """Convert a pair of prompt and answer, or a mapping, to a fact.

        Args:
            value: A fact, a pair, a triple with the subject, or a mapping with ``prompt`` and
                ``answer``, and perhaps ``subject``.

        Raises:
            DataError: If it is none of these.
        """
        if isinstance(value, cls):
            return value
        names = {field.name for field in fields(cls)}
        if isinstance(value, Mapping) and {"prompt", "answer"} <= value.keys() <= names:
            return cls(**value)
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (2, 3):
            return cls(*value)
        raise DataError(
            "a fact to attribute is a pair of prompt and answer, or a mapping with `prompt`, "
            f"`answer` and perhaps `subject`; got {value!r}"
        )

    @property
    def subject_span(self) -> tuple[int, int] | None:
        """Character offsets of the subject in the prompt; ``None`` if it is not in there."""
        start = None if self.subject is None else locate_subject(self.prompt, self.subject)
        return None if start is None or self.subject is None else (start, start + len(self.subject))


@dataclass(frozen=True)
class EditEffect:
    """Effect of one edit on a fact through one layer.

    Args:
        ids: The request; several: a commit that was attributed as a whole; none: columns that
            belong to no request.
        commit: Number of the commit.
        by: ``columns`` or ``undo``, see :data:`~lightning_edit.edits.shares.AttributedBy`.
        stack: Stack of the layer.
        block: Number of its block; ``None``: outside the blocks.
        module: Dotted name of the layer.
        log_prob: First-order effect on the log-probability of the answer, in nats.
        logit: First-order effect on the logit of the answer's first token.
        share: Norm of what the edit adds to the layer's output at the fact's key.
        overlap: Key overlap, see :meth:`~lightning_edit.edits.shares.Share.overlap`.
        resolved: First-order effect on the log-probability against a layer that is solved again
            without the request, see :meth:`~lightning_edit.edits.shares.Share.resolved`; ``None``
            if it is not known.
    """

    ids: tuple[str, ...]
    commit: int
    by: str
    stack: str
    block: int | None
    module: str
    log_prob: float
    logit: float
    share: float
    overlap: float | None = None
    resolved: float | None = None


@dataclass(frozen=True)
class CommitEffect:
    """Measured effect of one commit on a fact: what leaving the commit out changes.

    Args:
        ids: Its requests.
        commit: Its number.
        log_prob: Log-probability with the commit minus that without it, in nats.
    """

    ids: tuple[str, ...]
    commit: int
    log_prob: float


@dataclass(frozen=True)
class FactAttribution:
    """Why a fact moved: effects of the edits in force on its answer.

    Args:
        fact: The fact.
        log_prob: Log-probability of the answer on the edited model, in nats.
        unedited: The same on the unedited model.
        effects: Effects of each edit through each layer, the largest first.
        first_order: Sum of all effects on the log-probability, also of those that are not listed;
            NaN where the model's outputs overflow, so that no effect is known to first order.
        keys: By layer, the token at which shares are read.
        measured: Effects of single commits that were measured by leaving them out.
    """

    fact: AskedFact
    log_prob: float
    unedited: float
    effects: tuple[EditEffect, ...]
    first_order: float
    keys: Mapping[str, str]
    measured: tuple[CommitEffect, ...] = ()

    @property
    def change(self) -> float:
        """Change of the answer's log-probability by all edits, in nats; below 0 is harm."""
        return self.log_prob - self.unedited

    def by_edit(self) -> list[tuple[tuple[str, ...], float]]:
        """Sum the listed effects over layers, the largest edit first."""
        sums: dict[tuple[str, ...], float] = {}
        for effect in self.effects:
            sums[effect.ids] = sums.get(effect.ids, 0.0) + effect.log_prob
        return sorted(sums.items(), key=lambda item: -size(item[1]))

    @property
    def is_finite(self) -> bool:
        """Whether the effects are known to first order."""
        return isfinite(self.first_order)

    def leading(self) -> tuple[str, ...] | None:
        """Return the ids of the edit that moved the fact most; ``None`` if none is known.

        To first order, else by leaving commits out, where that moves the fact in the direction of
        its change.
        """
        if self.is_finite and (by_edit := self.by_edit()):
            return by_edit[0][0]
        if self.is_finite:
            return self.measured[0].ids if self.measured else None
        found = self._measured_cause()
        return None if found is None else found.ids

    def _measured_cause(self) -> CommitEffect | None:
        """Return the commit without which the fact would have moved least."""
        causes = [one for one in self.measured if one.log_prob * self.change > 0]
        return max(causes, key=lambda one: abs(one.log_prob), default=None)

    def sentence(self) -> str:
        """Say which edit moved the fact, and in which block."""
        moved = f"{self.change:+.2f} nats"
        if not self.is_finite:
            found = self._measured_cause()
            if found is None:
                return f"moved {moved}; its effects are not finite to first order, no edit is named"
            return (
                f"moved {moved}, most by edit {name_of(found.ids)} ({found.log_prob:+.2f}, "
                "measured; not finite to first order)"
            )
        leading = next((e for e in self.effects if e.log_prob * self.change > 0), None)
        if leading is None and self.measured:
            most = max(self.measured, key=lambda one: abs(one.log_prob))
            return f"moved {moved}, most by edit {name_of(most.ids)} ({most.log_prob:+.2f})"
        if leading is None:
            return f"moved {moved}; no edit has an effect in that direction to first order"
        where = f"in block {leading.block}" if leading.block is not None else leading.module
        return f"moved {moved}, most by {_edit(leading)}, {where} ({leading.log_prob:+.2f})"

    def to_row(self) -> dict[str, Any]:
        """Serialise to plain containers; what is not finite is ``None``, as JSON has no NaN."""
        row: dict[str, Any] = _finite(asdict(self))
        row["change"] = self.change
        row["sentence"] = self.sentence()
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "FactAttribution":
        """Deserialise a row of :meth:`to_row`.

        Args:
            row: The row.

        Raises:
            DataError: If it is no such row.
        """
        try:
            return cls(
                AskedFact(**row["fact"]),
                row["log_prob"],
                row["unedited"],
                tuple(map(_effect, row["effects"])),
                nan if row["first_order"] is None else row["first_order"],
                row["keys"],
                tuple(CommitEffect(**one | {"ids": tuple(one["ids"])}) for one in row["measured"]),
            )
        except (KeyError, TypeError) as error:
            raise DataError(
                f"not an attribution of this version ({error!r}); write it again with "
                "`lightning-edit attribute`"
            ) from error


def total(effects: Sequence[EditEffect]) -> float:
    """Sum effects on the log-probability; NaN where one of them is not finite.

    Args:
        effects: The effects.
    """
    values = [one.log_prob for one in effects]
    return fsum(values) if all(map(isfinite, values)) else nan


def size(value: float) -> float:
    """Return the size of an effect; one that is no number sorts as infinite.

    Args:
        value: The effect.
    """
    return abs(value) if isfinite(value) else inf


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by ``None``, in plain containers."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_finite, value))
    return value


def _effect(row: Mapping[str, Any]) -> EditEffect:
    numbers = {name: row[name] for name in ("log_prob", "logit", "share")}
    known = {name: nan if value is None else value for name, value in numbers.items()}
    return EditEffect(**dict(row) | known | {"ids": tuple(row["ids"])})


def name_of(ids: Sequence[str]) -> str:
    """Name an edit for a reader: its id, or the first ids of a commit.

    Args:
        ids: Its requests.
    """
    if not ids:
        return "(facts restored with an edit)"
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def _edit(effect: EditEffect) -> str:
    if len(effect.ids) > 1:
        return f"commit {effect.commit} ({name_of(effect.ids)})"
    return f"edit {name_of(effect.ids)}"
