"""SIR: Wang et al., Efficiently Quantifying and Mitigating Ripple Effects in Model Editing.

arXiv 2403.07825 (its first version: SORA). Axis names: ``n`` -- facts; ``w`` -- width of a target.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.delta import Delta
from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate import LocateThenEdit
from lightning_edit.editors.search import Targets
from lightning_edit.editors.texts import rewriting_texts
from lightning_edit.editors.wrap import WrappedEditor
from lightning_edit.encoding import encode_batch
from lightning_edit.exceptions import DataError
from lightning_edit.models.answers import AnswerRows, answer_logits
from lightning_edit.types import EditBatch, EditRequest


class SIR(WrappedEditor):
    """Find the facts that an edit moved, and write it again together with what they should stay.

    The host's update is tried; of the facts that it disturbs most, those whose answers became much
    less likely are put into the same least squares, with what the model read at their subjects
    before as their targets.

    Args:
        facts: What the model knows and may have to be restored: requests whose ``target`` is the
            answer to keep, or a JSONL file of such. Not the facts that locality is measured on.
        editor: The host, a locate-then-edit method that solves batches; ``None``: MEMIT.
        candidates: Facts that are looked at, by the length of what the update adds at their keys.
        revised: Most facts that are added to the system in one round.
        threshold: Rise of an answer's mean negative log-likelihood, in nats, that calls for
            revision.
        rounds: Most times that the edit is written again.
        restore: ``residual``: the targets are what the model reads at the subjects now, without
            any search; ``search``: they are searched like those of edits.

    Note:
        Reconstructed from the abstract and summaries: neither the full text nor code could be had.
        What the summaries find by a knowledge graph and embeddings is here the first-order effect
        of the update, ‖Δk‖; facts about an edit's own subject are left to change with it.
    """

    def __init__(
        self,
        facts: str | list[EditRequest],
        editor: Editor | None = None,
        candidates: int = 200,
        revised: int = 10,
        threshold: float = math.log(2),
        rounds: int = 3,
        restore: Literal["residual", "search"] = "residual",
    ) -> None:
        super().__init__(editor)
        if not isinstance(self.editor, LocateThenEdit) or not self.editor.batched:
            raise ValueError(
                "SIR writes edits and facts in one system, so its host must be a locate-then-edit "
                f"method that solves batches, such as MEMIT or AlphaEdit; got "
                f"{type(self.editor).__name__}"
            )
        self.facts = _read(facts) if isinstance(facts, str) else list(facts)
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

    @property
    def host(self) -> LocateThenEdit:
        """The host, as what it was checked to be."""
        return cast("LocateThenEdit", self.editor)

    def edit(self, batch: EditBatch) -> Delta:
        """Find the batch's update, and again with the facts that it would move.

        Args:
            batch: Requests that name their subjects.

        Returns:
            The last update; ``info`` names the facts that were revised.
        """
        host = self.host
        with torch.inference_mode(False), torch.enable_grad():
            targets = host.search(batch)
            delta = host.write(batch, targets)
            near = self._disturbed(batch, delta)
            before = self._nll(near)
            chosen: list[EditRequest] = []
            for _ in range(self.rounds if near else 0):
                with delta.applied(self.language_model):
                    rise = self._nll(near) - before
                worst = rise.argsort(descending=True).tolist()
                over = [near[n] for n in worst if rise[n] > self.threshold]
                new = [fact for fact in over if fact not in chosen][: self.revised]
                if not new:
                    break
                chosen += new
                delta = self._written_again(batch, targets, chosen)
        info = dict(delta.info) | {"revised": [fact.id for fact in chosen]}
        return replace(delta, request_ids=batch.ids, info=info)

    def _written_again(
        self, batch: EditBatch, targets: Targets, chosen: Sequence[EditRequest]
    ) -> Delta:
        host = self.host
        facts = encode_batch(self.tokenizer, chosen, batch.seed)
        objective = host.objective
        if self.restore == "residual":
            # The last pass of a search does not step: one pass reads, and leaves targets as read.
            host.objective = replace(objective, steps=1)
        try:
            kept = host.search(facts)
        finally:
            host.objective = objective
        whole = EditBatch(
            batch.requests + facts.requests, batch.encoded + facts.encoded, batch.seed
        )
        return host.write(whole, _together(targets, kept))

    @torch.no_grad()
    def _disturbed(self, batch: EditBatch, delta: Delta) -> list[EditRequest]:
        """Return the facts at whose keys the update adds most."""
        host = self.host
        subjects = {request.subject for request in batch.requests}
        others = [fact for fact in self.facts if fact.subject not in subjects]
        if not others:
            return []
        texts = rewriting_texts(self.tokenizer, encode_batch(self.tokenizer, others), ["{}"])
        modules = {name.removesuffix(".weight"): update for name, update in delta.weights.items()}
        keys = host.all_at_subjects(
            [text.until_subject() for text in texts], dict.fromkeys(modules, "input")
        )
        parts = [keys[name] @ update.dense().mT for name, update in modules.items()]
        added = torch.stack([part.square().sum(1) for part in parts]).sum(0)
        return [others[n] for n in added.argsort(descending=True)[: self.candidates].tolist()]

    @torch.no_grad()
    def _nll(self, facts: Sequence[EditRequest]) -> Float[Tensor, " n"]:
        """Return the mean negative log-likelihood of each fact's answer, in nats."""
        device = self.view.embeddings.get_parameter("weight").device
        found = [torch.zeros(0, device=device)]
        for start in range(0, len(facts), 64):
            encoded = encode_batch(self.tokenizer, facts[start : start + 64]).encoded
            rows = AnswerRows.pad([(item.prompt_ids, item.target_ids) for item in encoded], device)
            logits = answer_logits(self.language_model, rows).float()
            nll = torch.nn.functional.cross_entropy(logits, rows.targets, reduction="none")
            found.append(rows.per_row(nll))
        return torch.cat(found)


def _together(first: Targets, second: Targets) -> Targets:
    return Targets(
        torch.cat([first.delta, second.delta]),
        torch.cat([first.initial, second.initial]),
        first.keys + second.keys,
        first.values + second.values,
        first.losses + second.losses,
        first.steps + second.steps,
    )


def _read(path: str) -> list[EditRequest]:
    """Read requests from a JSONL file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return [
            EditRequest.from_dict({"id": f"fact-{number}", **json.loads(line)})
            for number, line in enumerate(lines)
            if line.strip()
        ]
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as facts ({error}); expected one JSON object a line with "
            "`prompt`, `subject` and `target`"
        ) from error
