"""SIR: Wang et al., Efficiently Quantifying and Mitigating Ripple Effects in Model Editing.

arXiv 2403.07825 (its first version: SORA). Axis names: ``n`` -- facts; ``w`` -- width of a target.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_edit.atlas.facts import unasked_facts
from lightning_edit.atlas.graph import load_atlas
from lightning_edit.editors.base import Editor
from lightning_edit.editors.first_order import first_order_effects
from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.editors.locate.prompts import rewriting_texts
from lightning_edit.editors.locate.targets import Targets
from lightning_edit.editors.one_by_one import PER_REQUEST
from lightning_edit.editors.wrappers.base import WrappedEditor
from lightning_edit.edits.columns import NO_REQUEST, renumbered
from lightning_edit.edits.delta import Delta, LowRank, WeightUpdate
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.storage.jsonl import iterate_rows
from lightning_edit.types import EditBatch, EditRequest

log = logging.getLogger(__name__)

#: Facts scored per forward pass.
_FACTS_PER_PASS = 64
CandidatesBy = Literal["output_change", "key_overlap", "first_order"]
"""How the facts that may have to be restored are ranked."""


@dataclass(frozen=True)
class _UneditedFacts:
    """Facts that the unedited model knows, with its NLL and hidden states as a reference.

    Args:
        facts: The facts.
        nll: Mean negative log-likelihood of each fact's answer.
        wanted: The unedited model's values at the subjects, the targets to restore.
    """

    facts: list[EditRequest]
    nll: Float[Tensor, " n"]
    wanted: Float[Tensor, "n w"]


class SIR(WrappedEditor):
    """Selective impact revision of ripple effects: solve an edit jointly with the facts it damages.

    The host's update is applied on trial; of the facts that it disturbs most, those whose answers
    become much less likely than in the unedited model are added to the same least squares, with the
    unedited model's values at their subjects as targets.

    Args:
        facts: Facts that may have to be restored: requests whose ``target`` is the answer to keep,
            a JSONL file of such, or ``atlas``, for the embedded model: geography that no test edit
            of :class:`~lightning_edit.datamodules.AtlasDataModule` changes and none is scored on.
            Do not use the facts that locality is measured on. Facts that the model does not know at
            binding are left out.
        editor: The host, a locate-then-edit method that solves batches; ``None``: MEMIT.
        candidates: Number of facts to check.
        revised: Most facts that are added to the system per round.
        threshold: Rise of an answer's mean negative log-likelihood, in nats, above which a fact is
            revised.
        rounds: Most times that the edit is solved again.
        restore: ``residual``: the targets are the unedited model's values at the subjects, without
            a search; ``search``: they are searched like those of edits.
        candidates_by: Ranking of the facts to check: ``output_change``: norm of the update's effect
            at their keys; ``key_overlap``: the largest key overlap with an edit, |kᵢᵀA⁻¹k|;
            ``first_order``: size of the first-order effect on the answer's log-probability, from
            gradients at all tokens (a forward and two backward passes over the known facts for each
            edit). Which of them foretells what: docs/ripple.md.

    Note:
        Reconstructed from the abstract and summaries: neither the full text nor code was available.
        The summaries find affected facts by a knowledge graph and embeddings; here by the effect of
        the update at their keys, ‖Δk‖. Facts about the subjects of the edit and of earlier ones may
        change with them. The summaries describe a single edit; in a sequence, comparing with the
        model before the latest edit would let many small changes through.
    """

    ends_answers = False  # the facts it watches and solves again keep the texts that they had

    def __init__(
        self,
        facts: str | list[EditRequest],
        editor: Editor | None = None,
        candidates: int = 200,
        revised: int = 10,
        threshold: float = math.log(2),
        rounds: int = 3,
        restore: Literal["residual", "search"] = "residual",
        candidates_by: CandidatesBy = "output_change",
    ) -> None:
        super().__init__(editor)
        if not isinstance(self.editor, LocateThenEdit) or not self.editor.batched:
            raise ValueError(
                "SIR writes edits and facts in one system, so its host must be a locate-then-edit "
                f"method that solves batches, such as MEMIT or AlphaEdit; got "
                f"{type(self.editor).__name__}"
            )
        self.facts = _load_facts(facts) if isinstance(facts, str) else list(facts)
        if not self.facts or any(fact.subject is None for fact in self.facts):
            nameless = [fact.id for fact in self.facts if fact.subject is None]
            raise ValueError(
                f"SIR needs at least one fact, each with its subject; got {len(self.facts)}, "
                f"without subject: {', '.join(nameless[:5]) or 'none'}"
            )
        self.candidates = candidates
        self.revised = revised
        self.threshold = threshold
        self.rounds = rounds
        self.restore = restore
        if candidates_by not in get_args(CandidatesBy):
            raise ValueError(
                f"candidates_by is one of {', '.join(get_args(CandidatesBy))}, got "
                f"{candidates_by!r}"
            )
        self.candidates_by: CandidatesBy = candidates_by
        self._edited_subjects: dict[str, None] = {}
        self._unedited = _UneditedFacts([], torch.zeros(0), torch.zeros(0, 0))

    @property
    def host(self) -> LocateThenEdit:
        """The host editor, typed as a locate-then-edit method."""
        return cast("LocateThenEdit", self.editor)

    def on_bind(self) -> None:
        """Bind the host, and score the facts on the unedited model to keep the known ones."""
        super().on_bind()
        self._edited_subjects = {}
        nll, right = self._answer_nll(self.facts)
        known = list(compress(self.facts, right.tolist()))
        if not known:
            log.warning(
                "the model knows none of the %d facts that SIR is to watch, so nothing will be "
                "revised; give it facts that the model answers right",
                len(self.facts),
            )
        wanted = self._current_targets(known, ["{}"]).wanted if known else torch.zeros(0, 0)
        self._unedited = _UneditedFacts(known, nll[right], wanted)

    # ------------------------------------------------------------------------------------ history

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Keep whose facts the edits in force are about, so that none of them is put back."""
        super().on_history(in_force, change)
        if change.kind != "appended":
            self._edited_subjects = {}
        for delta in change.deltas if change.kind == "appended" else in_force:
            self._edited_subjects |= dict.fromkeys(delta.info.get("subjects", ()))

    # ------------------------------------------------------------------------------------ editing

    def edit(self, batch: EditBatch) -> Delta:
        """Compute the batch's update, and solve again jointly with the facts that it damages.

        Args:
            batch: Requests that name their subjects.

        Returns:
            The last update; ``info`` lists the revised facts.
        """
        host, unedited = self.host, self._unedited
        with torch.inference_mode(False), torch.enable_grad():
            targets = host.search(batch)
            delta = host.write(batch, targets)
            near = self._most_disturbed(batch, delta)
            facts = [unedited.facts[number] for number in near]
            chosen: list[int] = []
            for _ in range(self.rounds if near else 0):
                with delta.applied(self.language_model):
                    now, _ = self._answer_nll(facts)
                rise = now - unedited.nll[near].to(now.device)
                worst = rise.argsort(descending=True).tolist()
                over = [near[line] for line in worst if rise[line] > self.threshold]
                new = [number for number in over if number not in chosen][: self.revised]
                if not new:
                    break
                chosen += new
                delta = self._solve_with_facts(batch, targets, chosen)
        # The facts that are solved with the batch are no requests of it.
        own = {key: delta.info[key][: len(batch)] for key in PER_REQUEST}
        info = (
            dict(delta.info)
            | own
            | {
                "revised": [unedited.facts[number].id for number in chosen],
                "subjects": [request.subject for request in batch.requests],
            }
        )
        numbers = [*range(len(batch)), *(NO_REQUEST for _ in chosen)]
        columns = renumbered(delta.columns, numbers)
        delta = replace(delta, request_ids=batch.ids, info=info, columns=columns)
        name = f"SIR({type(host).__name__})"
        host.effect_warnings.check(name, [delta], host.missed_advice())
        return delta

    def _solve_with_facts(self, batch: EditBatch, targets: Targets, chosen: list[int]) -> Delta:
        facts = [self._unedited.facts[number] for number in chosen]
        encoded = encode_batch(self.prompts, facts, batch.seed)
        if self.restore == "search":
            kept = self.host.search(encoded)
        else:
            kept = self._current_targets(facts, self.host.templates)
            wanted = self._unedited.wanted[chosen].to(kept.initial.device)
            kept = replace(kept, delta=wanted - kept.initial)
        whole = EditBatch(
            batch.requests + encoded.requests, batch.encoded + encoded.encoded, batch.seed
        )
        return self.host.write(whole, Targets.concat([targets, kept]))

    def _current_targets(self, facts: Sequence[EditRequest], templates: list[str]) -> Targets:
        """Return the model's current values at the facts' subjects, as targets."""
        host = self.host
        objective, own = host.objective, host.templates
        # The last pass of a search does not step: with one pass the targets are the values read.
        host.objective, host.templates = replace(objective, steps=1), templates
        try:
            return host.search(encode_batch(self.prompts, facts))
        finally:
            host.objective, host.templates = objective, own

    @torch.no_grad()
    def _most_disturbed(self, batch: EditBatch, delta: Delta) -> list[int]:
        """Return the known facts that the update disturbs most, by ``candidates_by``."""
        host, facts = self.host, self._unedited.facts
        edited = {request.subject for request in batch.requests} | self._edited_subjects.keys()
        others = [number for number, fact in enumerate(facts) if fact.subject not in edited]
        if not others:
            return []
        asked = encode_batch(self.prompts, [facts[number] for number in others])
        if self.candidates_by == "first_order":
            rows = [(item.prompt_ids, item.target_ids) for item in asked.encoded]
            (effects,) = first_order_effects(self.language_model, [delta], rows, _FACTS_PER_PASS)
            # By size: where a fact is harmed the sign of the first order says little.
            ranked = effects.abs().argsort(descending=True)
            return [others[n] for n in ranked[: self.candidates].tolist()]
        texts = rewriting_texts(self.prompts, asked, ["{}"])
        modules = {name.removesuffix(".weight"): update for name, update in delta.weights.items()}
        keys = host.all_at_subjects(
            [text.until_subject() for text in texts], dict.fromkeys(modules, "input")
        )
        parts = [self._disturbance(keys[name], update) for name, update in modules.items()]
        added = torch.stack(parts).sum(0)
        return [others[n] for n in added.argsort(descending=True)[: self.candidates].tolist()]

    def _disturbance(self, keys: Float[Tensor, "n f"], update: WeightUpdate) -> Float[Tensor, " n"]:
        """Return how much an update disturbs the facts with some keys, in one layer."""
        if self.candidates_by == "output_change":
            return (keys @ update.dense().mT).square().sum(1)
        if not isinstance(update, LowRank):
            raise ConfigError(
                "SIR ranks facts by key overlap, but the update of its host is one matrix without "
                "keys (a batch of more keys than the layer has outputs, or D4S after an undo); use "
                "candidates_by='output_change'"
            )
        return (keys @ update.right.double().mT).abs().amax(1)

    @torch.no_grad()
    def _answer_nll(
        self, facts: Sequence[EditRequest]
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """Return each answer's mean NLL, and whether all its tokens are top-1 (teacher-forced)."""
        device = self.view.embeddings.get_parameter("weight").device
        found, right = [], []
        for start in range(0, len(facts), _FACTS_PER_PASS):
            encoded = encode_batch(self.prompts, facts[start : start + _FACTS_PER_PASS]).encoded
            rows = AnswerRows.pad([(item.prompt_ids, item.target_ids) for item in encoded], device)
            verdicts = rows.verdicts(answer_logits(self.language_model, rows))
            found.append(verdicts.nll)
            right.append(verdicts.right)
        return torch.cat(found), torch.cat(right)


def _load_facts(path: str) -> list[EditRequest]:
    """Load facts as requests from a JSONL file, or from the atlas."""
    if path == "atlas":
        return unasked_facts(load_atlas())
    try:
        return [
            EditRequest.from_dict({"id": f"fact-{number - 1}", **row})
            for number, row in iterate_rows(Path(path))
        ]
    except (OSError, DataError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as facts ({error}); expected one JSON object a line with "
            "`prompt`, `subject` and `target`"
        ) from error
