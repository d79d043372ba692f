r"""Attribution of a fact's change to the edits in force: exact shares, first-order effects, undo.

At each layer the shares of the edits in its output are exact (:mod:`lightning_edit.edits.shares`).
The effect of a share on the answer is its product with the gradient of the answer's log-probability
by that output, summed over the tokens of the text: exact to first order, on the edited model. What
a whole commit does is also measured, by leaving it out.
"""

from collections.abc import Sequence
from math import fsum
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.entries import Entry
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.left_out import left_out
from lightning_edit.edits.shares import Share, linear_module, shares_of, summed_by_request
from lightning_edit.edits.unedited import unedited
from lightning_edit.evaluation.attributed import (
    AskedFact,
    CommitEffect,
    EditEffect,
    FactAttribution,
)
from lightning_edit.exceptions import ConfigError, DataError, LedgerError
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.output_gradients import RowGradients, output_gradients
from lightning_edit.inference.responder import Statement
from lightning_edit.models.prompt_encoder import EncodedPrompt, PromptEncoder, PromptText
from lightning_edit.models.sites import site_of
from lightning_edit.models.view import resolve

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
            measured by leaving them out: a forward pass each.

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
        self.view = resolve(ledger.model)

    def attribute(
        self, facts: Sequence[AskedFact], top: int | None, by: By, measure: int
    ) -> list[FactAttribution]:
        if not len(self.ledger.in_force):
            raise LedgerError(
                "no edit is in force, so no fact was moved by one; edit first, or put undone edits "
                "back with redo (the protocol `single` takes every edit back)"
            )
        if by == "columns":
            self._require_columns()
        encoded = [self._encode(fact) for fact in facts]
        modules = {} if by == "undo" else self._modules()
        rows = [(one.prompt, one.answer) for one in encoded]
        names = list(dict.fromkeys(modules.values()))
        gradients = output_gradients(self.ledger.model, rows, names) if names and rows else []
        now = self._log_probs(facts, list(self.ledger.in_force) if self._acts() else [])
        with unedited(self.ledger):
            before = self._log_probs(facts, [])
        effects = self._effects(gradients, encoded, modules) if gradients else [[] for _ in facts]
        keys = [
            {name: self._key_token(row, encoded[n], name, modules) for name in names}
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
                fsum(one.log_prob for one in effects[n]),
                keys[n],
                tuple(sorted(measured[n], key=lambda one: -abs(one.log_prob))),
            )
            for n, fact in enumerate(facts)
        ]

    # ------------------------------------------------------------------------------------ checks

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

    def _modules(self) -> dict[str, str]:
        """Return the linear layer of every parameter that acts on its output linearly."""
        model = self.ledger.model
        found = {name: linear_module(model, name) for name in self.ledger.touched}
        return {name: module for name, module in found.items() if module is not None}

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

    def _log_probs(self, facts: Sequence[AskedFact], in_force: Sequence[Any]) -> list[float]:
        model: Any = self.ledger.model
        if self.editor is not None and self._acts():
            responder = self.editor.responder(in_force)
        else:
            responder = ModelResponder(model, self.prompts)
        statements = [Statement(fact.prompt, fact.answer, fact.separator) for fact in facts]
        return [-one.total for one in responder.loglikelihood(statements)] if statements else []

    # ------------------------------------------------------------------------------------ effects

    def _effects(
        self,
        gradients: Sequence[RowGradients],
        encoded: Sequence[EncodedPrompt],
        modules: dict[str, str],
    ) -> list[list[EditEffect]]:
        found: list[list[EditEffect]] = [[] for _ in gradients]
        device = torch.device("cpu")
        reads = {name: _Reads.of(gradients, name, device) for name in set(modules.values())}
        at_key = {
            name: torch.stack(
                [
                    row.layers[name].inputs[self._key(row, encoded[n], name, modules)].to(device)
                    for n, row in enumerate(gradients)
                ]
            )
            for name in reads
        }
        for entry in self.ledger.in_force.entries:
            delta = self.ledger.in_force.delta(entry)
            for name in delta.weights:
                if name not in modules:
                    continue
                module = modules[name]
                site, read = site_of(self.view, module), reads[module]
                for share in shares_of(delta, name):
                    log_probs = read.effects(share)
                    logits = read.per_fact(share.along(read.inputs, read.logit))
                    norms = share.at(at_key[module]).norm(dim=1).tolist()
                    again = share.resolved()
                    without: Sequence[float | None] = [None] * len(found)
                    if again is not None:
                        without = read.effects(again)
                    for n, effects in enumerate(found):
                        effects.append(
                            EditEffect(
                                share.ids,
                                entry.seq,
                                share.by,
                                site.stack,
                                site.block,
                                name,
                                log_probs[n],
                                logits[n],
                                norms[n],
                                share.overlap(at_key[module][n]),
                                without[n],
                            )
                        )
        return found

    def _key(
        self, row: RowGradients, encoded: EncodedPrompt, name: str, modules: dict[str, str]
    ) -> int:
        """Return the position of a fact's key at a layer: the subject's last token, where known.

        Else the token, of those that the answer depends on, at which the edits add most.
        """
        reads_prompt = not self.view.is_encoder_decoder or (
            site_of(self.view, name).stack == "encoder"
        )
        if encoded.subject_last is not None and reads_prompt:
            return encoded.subject_last
        layer = row.layers[name]
        added = torch.zeros_like(layer.log_prob)
        for parameter, module in modules.items():
            if module == name:
                total = self.ledger.touched[parameter].total.to(added.device)
                added += total if total.ndim == 1 else layer.inputs @ total.mT
        size = added.norm(dim=1)
        return int(torch.where(layer.log_prob.norm(dim=1) > 0, size, -1.0).argmax())

    def _key_token(
        self, row: RowGradients, encoded: EncodedPrompt, name: str, modules: dict[str, str]
    ) -> str:
        place = self._key(row, encoded, name, modules)
        ids = (*encoded.prompt, *encoded.answer)
        return self.prompts.tokenizer.decode([ids[place]]) if place < len(ids) else ""

    # ------------------------------------------------------------------------------------ undo

    def _to_measure(self, effects: Sequence[EditEffect], by: By, measure: int) -> list[Entry]:
        entries = self.ledger.in_force.entries
        if by == "undo":
            return list(entries)
        linear = self._modules().keys()
        chosen = {}
        for entry in entries:
            delta = self.ledger.in_force.delta(entry)
            if delta.state or delta.prompts or not delta.weights.keys() <= linear:
                chosen[entry.seq] = entry
        sums: dict[int, float] = {}
        for one in effects:
            sums[one.commit] = sums.get(one.commit, 0.0) + one.log_prob
        largest = sorted(sums, key=lambda seq: -abs(sums[seq]))[:measure]
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


class _Reads:
    """A layer's inputs and gradients at the tokens of all facts, one behind the other."""

    def __init__(
        self, inputs: Tensor, log_prob: Tensor, logit: Tensor, fact: Tensor, count: int
    ) -> None:
        self.inputs, self.log_prob, self.logit = inputs, log_prob, logit
        self.fact, self.count = fact, count

    @classmethod
    def of(cls, rows: Sequence[RowGradients], name: str, device: torch.device) -> "_Reads":
        layers = [row.layers[name] for row in rows]
        numbers = [n for n, layer in enumerate(layers) for _ in layer.inputs]
        return cls(
            torch.cat([layer.inputs for layer in layers]).to(device),
            torch.cat([layer.log_prob for layer in layers]).to(device),
            torch.cat([layer.logit for layer in layers]).to(device),
            torch.tensor(numbers, device=device),
            len(rows),
        )

    def effects(self, share: Share) -> list[float]:
        """Return the first-order effect of a share on the log-probability of each fact."""
        return self.per_fact(share.along(self.inputs, self.log_prob))

    def per_fact(self, values: Tensor) -> list[float]:
        sums = values.new_zeros(self.count).index_add(0, self.fact, values)
        listed: list[float] = sums.tolist()
        return listed


def _largest(effects: Sequence[EditEffect], top: int | None) -> list[EditEffect]:
    """Return the effects of the edits that move a fact most, the largest first."""
    sums: dict[tuple[int, tuple[str, ...]], float] = {}
    for one in effects:
        sums[one.commit, one.ids] = sums.get((one.commit, one.ids), 0.0) + one.log_prob
    listed = sorted(sums, key=lambda edit: -abs(sums[edit]))[:top]
    kept = [one for one in effects if (one.commit, one.ids) in set(listed)]
    return sorted(kept, key=lambda one: -abs(one.log_prob))
