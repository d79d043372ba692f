"""Selection of a run's edits for export, and the sum of their deltas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_edit.edits.delta import Delta, Dense, LowRank, WeightUpdate
from lightning_edit.edits.entries import Entry
from lightning_edit.edits.in_force import load_entry
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.run_journal import open_journal
from lightning_edit.exceptions import ExportError
from lightning_edit.models.prompt_format import PromptFormat


@dataclass(frozen=True)
class Selection:
    """The selected edits of one run: commits and deltas.

    Args:
        run: The run folder.
        opening: First line of its journal: model hash, editor, language model.
        entries: Journal entries of the commits, in commit order.
        deltas: Their deltas.
        picked: Whether the user named the edits; otherwise they are the edits in force.
    """

    run: Path
    opening: Mapping[str, Any]
    entries: tuple[Entry, ...]
    deltas: tuple[Delta, ...]
    picked: bool

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the exported requests."""
        return tuple(request for entry in self.entries for request in entry.ids)

    @property
    def requests(self) -> list[Mapping[str, Any]]:
        """Exported requests as dictionaries."""
        return [request for entry in self.entries for request in entry.requests]

    @property
    def model_hash(self) -> str:
        """Hash of the unedited model's weights."""
        return str(self.opening["model"])

    def language_model(self, key: str) -> str:
        """Return the ``name`` or ``dtype`` of the edited language model.

        Raises:
            ExportError: If the journal does not record it.
        """
        facts = self.opening.get("language_model") or {}
        if key not in facts:
            raise ExportError(
                f"the journal of {self.run} does not record the language model's {key}; "
                "export from a run that `lightning-edit edit` made"
            )
        return str(facts[key])

    @property
    def form(self) -> PromptFormat:
        """The format of prompts in which the edits were made."""
        facts = self.opening.get("language_model") or {}
        return PromptFormat.stored(facts.get("prompts") or {})

    @property
    def answer_opening(self) -> str:
        """What stood between a chat template's prompt and the answers; empty: blanks at most."""
        facts = self.opening.get("language_model") or {}
        return str(facts.get("answer_opening", ""))


def select_edits(run: Path, ids: Sequence[str] | None = None) -> Selection:
    """Select the edits of a run from its journal and load their deltas.

    Args:
        run: The run folder.
        ids: Ids of the requests to select, undone ones included; ``None``: all edits in force.

    Returns:
        The edits with their deltas.

    Raises:
        ExportError: If there is no journal, or no edit to export.
        LedgerError: If the journal or a delta file is damaged.
    """
    folder = run / "ledger"
    if not (folder / "journal.jsonl").exists():
        raise ExportError(
            f"{run} holds no edits (no {folder / 'journal.jsonl'}); "
            "give the folder that `lightning-edit edit` wrote"
        )
    journal = open_journal(run)
    assert journal.opening is not None  # checked there
    entries = journal.active() if ids is None else _find_commits(journal, ids)
    if not entries:
        raise ExportError(_explain_no_edits(run, journal))
    deltas = tuple(load_entry(folder, entry) for entry in entries)
    return Selection(run, journal.opening, tuple(entries), deltas, picked=ids is not None)


def _explain_no_edits(run: Path, journal: Journal) -> str:
    made = journal.commits()
    if not made and (run / "results.json").exists():
        return (
            f"{run} has no edit: all were refused, see its tables (`lightning-edit report {run}`)"
        )
    if not made:
        return f"{run} has no edit yet; run `lightning-edit edit` to the end first"
    if journal.opening is not None and journal.opening.get("protocol") == "single":
        reason = "protocol single restores the model after each edit"
    else:
        reason = "every edit was undone"
    example = made[0].ids[0]
    return (
        f"{run} has no edits in force: {reason}; export one with --ids ID, such as --ids {example}"
    )


def _find_commits(journal: Journal, ids: Sequence[str]) -> list[Entry]:
    """Find the commits of the given request ids: those in force, else the latest ones."""
    latest = {request: entry for entry in journal.commits() for request in entry.ids}
    latest |= {request: entry for entry in journal.active() for request in entry.ids}
    if missing := [request for request in ids if request not in latest]:
        listed = ", ".join(list(latest)[:8]) or "none"
        raise ExportError(
            f"the run has no edit called {', '.join(map(repr, missing[:8]))}; it made: {listed}"
            f"{' …' if len(latest) > 8 else ''}"
        )
    chosen = {latest[request].seq: latest[request] for request in ids}
    for entry in chosen.values():
        if rest := sorted(set(entry.ids) - set(ids)):
            asked = [request for request in entry.ids if request in ids]
            raise ExportError(
                f"{', '.join(asked[:8])} was solved together with {', '.join(rest[:8])}"
                f"{' …' if len(rest) > 8 else ''}; export the whole batch"
            )
    return [chosen[seq] for seq in sorted(chosen)]


def combine(selection: Selection) -> Delta:
    """Sum the weight updates of a selection into one delta.

    Low-rank factors are concatenated, which is exact. Where the total rank exceeds the largest
    rank of the matrix, and for dense updates, the sum is dense, formed in float64 and stored in
    float32.

    Args:
        selection: The selected edits.

    Returns:
        The summed delta.
    """
    names = sorted({name for delta in selection.deltas for name in delta.weights})
    weights = {
        name: _sum_updates(
            [delta.weights[name] for delta in selection.deltas if name in delta.weights]
        )
        for name in names
    }
    info = {"commits": [entry.seq for entry in selection.entries], "model": selection.model_hash}
    return Delta(selection.ids, weights, info=info)


def _sum_updates(updates: Sequence[WeightUpdate]) -> WeightUpdate:
    if len(updates) == 1:
        return updates[0]
    low = [update for update in updates if isinstance(update, LowRank)]
    full = min(low[0].left.shape[0], low[0].right.shape[1]) if low else 0
    if len(low) == len(updates) and sum(update.rank for update in low) <= full:
        return LowRank(
            torch.cat([update.left for update in low], dim=1),
            torch.cat([update.right for update in low], dim=0),
        )
    total = updates[0].dense().clone()
    for update in updates[1:]:
        total += update.dense()
    return Dense(total.float())
