r"""Attribution of a fact's change to the edits in force: exact shares, first-order effects, undo.

At each layer the shares of the edits in its output are exact (:mod:`lightning_edit.edits.shares`).
The effect of a share on the answer is its product with the gradient of the answer's log-probability
by that output, summed over the tokens of the text: exact to first order, on the edited model. What
a whole commit does is also measured, by leaving it out.
"""

from collections.abc import Sequence
from typing import Any, Literal

from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.entries import Entry
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.left_out import left_out
from lightning_edit.edits.shares import summed_by_request
from lightning_edit.edits.unedited import unedited
from lightning_edit.evaluation.attributed import (
    AskedFact,
    CommitEffect,
    EditEffect,
    FactAttribution,
    size,
    total,
)
from lightning_edit.evaluation.edit_effects import LayerEffects, LayerShares
from lightning_edit.exceptions import ConfigError, DataError, LedgerError
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.output_gradients import RowGradients, output_gradients
from lightning_edit.inference.responder import Statement
from lightning_edit.models.prompt_encoder import EncodedPrompt, PromptEncoder, PromptText

By = Literal["auto", "columns", "undo"]


def attribute_edits(
    edited: EditedModel, facts: Any, top: int | None = None, by: By = "auto", measure: int = 0
) -> list[FactAttribution]:
    """Attribute the change of facts to the edits in force; ``edited.attribute`` in Python.

    Args:
        edited: The handle; its model has the same bits afterwards.
        facts: A fact or several, see :meth:`AskedFact.of`.
        top: Number of edits that are listed for each fact, in all their layers; ``None``: all.
        by: ``columns``: only the requests' own columns of closed-form updates; anything else is
            refused. ``undo``: whole commits only, measured by leaving each out. ``auto``: columns
            where an update has them, else the commit as a whole, and commits that act at run time
            or change no linear layer are measured.
        measure: Number of commits of each fact, those of the largest effects, that are also
            measured by leaving them out: a forward pass each. Where effects are not finite, since
            the model's outputs overflow at the fact, an edit is named by what was measured alone.

    Returns:
        One attribution a fact, in order.

    Raises:
        LedgerError: If no edit is in force.
        ConfigError: If ``by`` is ``columns`` and an update is no sum over its requests.
        DataError: If a fact is not valid.
    """
    listed = [facts] if _is_one(facts) else list(facts)
    asked = [AskedFact.of(one) for one in listed]
    return _Attributor(edited.ledger, _encoder(edited), edited.editor).attribute(
        asked, top, by, measure
    )


def shares_at_key(edited: EditedModel, fact: Any) -> list[LayerShares]:
    """Return what every edit adds to each layer's output at a fact's key, as vectors.

    Args:
        edited: The handle.
        fact: The fact, see :meth:`AskedFact.of`.

    Returns:
        One entry for each weight or bias of a linear layer that edits in force change.

    Raises:
        LedgerError: If no edit is in force.
        DataError: If the fact is not valid.
    """
    return _Attributor(edited.ledger, _encoder(edited), edited.editor).shares(AskedFact.of(fact))


def attribute_in_ledger(
    ledger: Ledger, prompts: PromptEncoder, editor: Any, facts: Sequence[AskedFact], top: int | None
) -> list[FactAttribution]:
    """Attribute the change of facts to the edits of a ledger, for callbacks.

    Args:
        ledger: The ledger.
        prompts: Tokenizer of the language model.
        editor: The bound editor; ``None`` if edits are updates of weights.
        facts: The facts.
        top: Number of edits that are listed for each fact; ``None``: all.
    """
    return _Attributor(ledger, prompts, editor).attribute(facts, top, "auto", 0)


def _is_one(facts: Any) -> bool:
    if isinstance(facts, AskedFact) or hasattr(facts, "keys"):
        return True
    return isinstance(facts, tuple) and bool(facts) and isinstance(facts[0], str)


def _encoder(edited: EditedModel) -> PromptEncoder:
    prompts = getattr(edited, "prompts", None) or edited.editor.prompts
    return PromptEncoder.for_model(edited.model, prompts)


class _Attributor:
    def __init__(self, ledger: Ledger, prompts: PromptEncoder, editor: Any) -> None:
        self.ledger = ledger
        self.prompts = prompts
        self.editor = editor
        self.layers = LayerEffects(ledger, prompts)

    def attribute(
        self, facts: Sequence[AskedFact], top: int | None, by: By, measure: int
    ) -> list[FactAttribution]:
        self._require_edits()
        if by == "columns":
            self._require_columns()
        encoded = [self._encode(fact) for fact in facts]
        names = [] if by == "undo" else self.layers.names
        gradients = self._gradients(encoded, names) if names and encoded else []
        now = self._log_probs(facts, list(self.ledger.in_force) if self._acts() else [])
        with unedited(self.ledger):
            before = self._log_probs(facts, [])
        effects = self.layers.of(gradients, encoded) if gradients else [[] for _ in facts]
        keys = [
            {name: self.layers.key_token(row, encoded[n], name) for name in names}
            for n, row in enumerate(gradients)
        ] or [{} for _ in facts]
        chosen = [_largest(found, top) for found in effects]
        to_measure = [self._to_measure(one, by, measure) for one in effects]
        measured = self._measured(facts, now, to_measure)
        return [
            FactAttribution(
                fact,
                now[n],
                before[n],
                tuple(chosen[n]),
                total(effects[n]),
                keys[n],
                tuple(sorted(measured[n], key=lambda one: -abs(one.log_prob))),
            )
            for n, fact in enumerate(facts)
        ]

    def shares(self, fact: AskedFact) -> list[LayerShares]:
        self._require_edits()
        encoded = self._encode(fact)
        (row,) = self._gradients([encoded], self.layers.names)
        return self.layers.shares(row, encoded)

    # ------------------------------------------------------------------------------------ checks

    def _require_edits(self) -> None:
        if not len(self.ledger.in_force):
            raise LedgerError(
                "no edit is in force, so no fact was moved by one; edit first, or put undone edits "
                "back with redo (the protocol `single` takes every edit back)"
            )

    def _require_columns(self) -> None:
        for entry in self.ledger.in_force.entries:
            delta = self.ledger.in_force.delta(entry)
            if delta.state or delta.prompts or not summed_by_request(delta):
                raise ConfigError(
                    f"commit {entry.seq} ({', '.join(entry.ids[:3])}) has no columns of its "
                    "requests: its editor's update is no sum over them (a mask, a spectrum, "
                    "gradient steps, or what acts at run time), or the run is of a version that "
                    "did not record them. Attribute it by leaving the commit out (by='undo', "
                    "--by undo), or write the edits again"
                )

    def _acts(self) -> bool:
        return self.ledger.runtime is not None

    # ------------------------------------------------------------------------------------ reading

    def _encode(self, fact: AskedFact) -> EncodedPrompt:
        text = PromptText(fact.prompt, fact.answer, fact.subject_span, fact.separator)
        if fact.subject is not None and fact.subject_span is None:
            raise DataError(
                f"the subject {fact.subject!r} is not in the prompt {fact.prompt!r}; spell it as "
                "there, or leave it out"
            )
        try:
            (encoded,) = self.prompts.encode([text])
        except ValueError as error:
            raise DataError(f"fact {fact.prompt!r}: {error}") from error
        return encoded

    def _gradients(
        self, encoded: Sequence[EncodedPrompt], names: Sequence[str]
    ) -> list[RowGradients]:
        rows = [(one.prompt, one.answer) for one in encoded]
        return output_gradients(self.ledger.model, rows, names)

    def _log_probs(self, facts: Sequence[AskedFact], in_force: Sequence[Any]) -> list[float]:
        model: Any = self.ledger.model
        if self.editor is not None and self._acts():
            responder = self.editor.responder(in_force)
        else:
            responder = ModelResponder(model, self.prompts)
        statements = [Statement(fact.prompt, fact.answer, fact.separator) for fact in facts]
        return [-one.total for one in responder.loglikelihood(statements)] if statements else []

    # ------------------------------------------------------------------------------------ undo

    def _to_measure(self, effects: Sequence[EditEffect], by: By, measure: int) -> list[Entry]:
        entries = self.ledger.in_force.entries
        if by == "undo":
            return list(entries)
        linear = self.layers.modules.keys()
        chosen = {}
        for entry in entries:
            delta = self.ledger.in_force.delta(entry)
            if delta.state or delta.prompts or not delta.weights.keys() <= linear:
                chosen[entry.seq] = entry
        sums: dict[int, float] = {}
        for one in effects:
            sums[one.commit] = sums.get(one.commit, 0.0) + one.log_prob
        # Of effects that are not finite any may be the largest; the last commit is asked first.
        largest = sorted(sums, key=lambda seq: (-size(sums[seq]), -seq))[:measure]
        return [e for e in entries if e.seq in chosen or e.seq in largest]

    def _measured(
        self, facts: Sequence[AskedFact], now: Sequence[float], entries: Sequence[Sequence[Entry]]
    ) -> list[list[CommitEffect]]:
        found: list[list[CommitEffect]] = [[] for _ in facts]
        wanted: dict[int, tuple[Entry, list[int]]] = {}
        for number, listed in enumerate(entries):
            for entry in listed:
                wanted.setdefault(entry.seq, (entry, []))[1].append(number)
        for entry, numbers in wanted.values():
            with left_out(self.ledger, entry) as left:
                without = self._log_probs([facts[n] for n in numbers], left)
            for n, value in zip(numbers, without, strict=True):
                found[n].append(CommitEffect(entry.ids, entry.seq, now[n] - value))
        return found


def _largest(effects: Sequence[EditEffect], top: int | None) -> list[EditEffect]:
    """Return the effects of the edits that move a fact most, the largest first."""
    sums: dict[tuple[int, tuple[str, ...]], float] = {}
    for one in effects:
        sums[one.commit, one.ids] = sums.get((one.commit, one.ids), 0.0) + one.log_prob
    listed = set(sorted(sums, key=lambda edit: -size(sums[edit]))[:top])
    kept = [one for one in effects if (one.commit, one.ids) in listed]
    return sorted(kept, key=lambda one: -size(one.log_prob))
