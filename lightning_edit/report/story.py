"""Plain-language summary of a run: what was edited and whether it held, in sentences.

Nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_edit.report.cases import Case, Edit
from lightning_edit.report.runs import Run
from lightning_edit.report.undone import undone_edits

#: Each aspect as a question to a reader.
QUESTION = {
    "reliability": "Does the edited model give the new answer to the edited question?",
    "generalization": "Does it give the new answer when the question is worded otherwise?",
    "locality": "Does it answer as before where nothing should have changed?",
    "portability": "Does it draw the consequences of the edit?",
    "understanding": "Does the edit hold as an open question, negated, and as a yes/no check?",
    "known": "Does it still know facts that have nothing to do with the edit?",
}
_COUNT_WORDS = {
    "reliability": ("edit holds", "edits hold"),
    "generalization": ("rewording gets the new answer", "rewordings get the new answer"),
    "locality": (
        "neighbouring question is answered as before",
        "neighbouring questions are answered as before",
    ),
    "portability": ("consequence is drawn", "consequences are drawn"),
    "understanding": (
        "other form of asking gets the right answer",
        "other forms of asking get the right answer",
    ),
    "known": ("unrelated fact is still known", "unrelated facts are still known"),
}
_PROTOCOL_WORDS = {
    "single": "each alone on the pristine model",
    "batch": "all at once",
    "sequential": "one after the other",
}
_MAX_CARDS = 6


@dataclass(frozen=True)
class Count:
    """Count of an aspect's probes that went as expected.

    Args:
        aspect: Name of the aspect.
        good: Number of probes that went as expected.
        of: Number of probes measured.
    """

    aspect: str
    good: int
    of: int

    @property
    def share(self) -> float:
        """Share of probes that went as expected."""
        return self.good / self.of

    @property
    def words(self) -> str:
        """Noun phrase for the counted probes, singular or plural."""
        return _COUNT_WORDS[self.aspect][self.of != 1]


@dataclass(frozen=True)
class Card:
    """Card of one edit: its prompt, counts by aspect and worst side effect.

    Args:
        edit: The edit with its probes.
        itself: Its reliability probe.
        counts: Counts of its other probes, by aspect.
        worst: The probe that should be unchanged and changed most.
    """

    edit: Edit
    itself: Case
    counts: tuple[Count, ...]
    worst: Case | None


@dataclass(frozen=True)
class Story:
    """First screen of the page for one run: lead sentence, summary, counts and cards.

    Args:
        run: The run.
        lead: One sentence on what the run did.
        summary: Whether the edits held and what else changed; empty if the run kept no cases.
        counts: Counts of the probes that went as expected, by aspect.
        cards: Cards of selected edits.
        choice: How these edits were selected.
        generated: Whether texts were generated; otherwise the scores are teacher-forced only.
    """

    run: Run
    lead: str
    summary: str
    counts: tuple[Count, ...]
    cards: tuple[Card, ...]
    choice: str
    generated: bool


def summarise_run(run: Run, edits: Sequence[Edit], most: int = _MAX_CARDS) -> Story:
    """Summarise a run in sentences, with cards of selected edits.

    Args:
        run: The run.
        edits: Its edits with their probes at the last evaluation.
        most: Number of cards.
    """
    chosen, choice = _choose(edits, most)
    cards = [
        Card(edit, itself, _counts([edit])[1:], next(iter(edit.harmed), None))
        for edit in chosen
        if (itself := edit.itself) is not None
    ]
    generated = any(case.now is not None for edit in edits for case in edit.cases)
    return Story(
        run,
        lead(run, len(edits) or run.edits, sum(edit.undone for edit in edits)),
        _summary(_counts(edits), generated),
        _counts(edits),
        tuple(cards),
        choice,
        generated,
    )


def _summary(counts: Sequence[Count], generated: bool) -> str:
    by_aspect = {count.aspect: count for count in counts}
    held, kept = by_aspect.get("reliability"), by_aspect.get("locality")
    sentences = []
    if held:
        how = "when the model writes by itself" if generated else "when the model is teacher forced"
        number = f"{held.good:,} of {held.of:,} hold"
        if held.good in (0, held.of):
            number = "None holds" if not held.good else "All hold" if held.of > 1 else "It holds"
        sentences.append(f"{number} {how}.")
    if kept:
        moved = kept.of - kept.good
        sentences.append(
            f"{moved:,} of {kept.of:,} answers that should have stayed the same changed."
            if moved
            else f"All {kept.of:,} answers that should have stayed the same did."
        )
    return " ".join(sentences)


def lead(run: Run, edits: int, undone: int = 0) -> str:
    """Describe in one sentence what a run did: editor, edits, model, protocol.

    Args:
        run: The run.
        edits: Number of edits at its last evaluation.
        undone: Number of them that were undone after the run.
    """
    protocol = run.results["protocol"]
    how = _PROTOCOL_WORDS[protocol]
    if protocol == "sequential" and run.results["batch_size"] > 1:
        how = f"in batches of {run.results['batch_size']}, one after the other"
    noun = "fact" if edits == 1 else "facts"
    what = f"{run.editor} wrote {edits:,} {noun} into {run.model}, {how}"
    if not undone:
        return f"{what}."
    some = f"{undone:,} of them {'was' if undone == 1 else 'were'}"
    every = "it was" if edits == 1 else "all were"
    return f"{what}; {every if undone == edits else some} undone later."


def _counts(edits: Sequence[Edit]) -> tuple[Count, ...]:
    found = []
    for aspect in QUESTION:
        pairs = [edit.count(aspect) for edit in edits]
        total = sum(of for _, of in pairs)
        if total:
            found.append(Count(aspect, sum(good for good, _ in pairs), total))
    return tuple(found)


def _choose(edits: Sequence[Edit], most: int) -> tuple[list[Edit], str]:
    """Select the first edits and those that failed or have the most side effects."""
    if len(edits) <= most:
        return list(edits), ""
    half = (most + 1) // 2
    first, rest = list(edits[:half]), edits[half:]
    troubled = [edit for edit in rest if edit.held is False or edit.harmed]
    troubled.sort(key=lambda edit: (edit.held is not False, -len(edit.harmed)))
    worst = troubled[: most - half]
    words = f"The first {len(first)} edits" if len(first) > 1 else "The first edit"
    if worst:
        number = len(worst) if len(worst) > 1 else "one"
        words += f", and the {number} of the others with the most harm"
    return first + worst, f"{words}. All {len(edits):,} are in the table below."


def warnings(run: Run) -> list[str]:
    """Describe early stops, rollbacks and later undos of a run as warnings.

    Args:
        run: The run.
    """
    found = []
    if sentence := undone_edits(run.folder).sentence:
        found.append(f"{run.label}: {sentence}")
    if run.results["status"] != "complete":
        found.append(f"{run.label} ended before its last edit.")
    for row in run.results.get("events", []):
        event = row["event"]
        ids = ", ".join(event.get("edits", ())) or "an edit"
        did = {
            "rollback": f"took back {ids}",
            "refuse": f"refused {ids}",
            "stop": "stopped the run",
            "skip": f"left out {ids}",
        }
        action = did.get(event["action"], event["action"])
        found.append(f"After {row['after']} edits {row['by']} {action}: {event.get('reason')}.")
    return found


def facts_about(run: Run) -> list[tuple[str, str]]:
    """List the settings to reproduce a run: editor, model, data, protocol, seed, versions."""
    results = run.results
    data, model = results["data"], results["language_model"]
    listed = [
        ("editor", f"{run.editor}({_arguments(results['editor']['args'])})"),
        ("language model", f"{model['name']}, {model['dtype']}, weights {model['hash'][:12]}"),
        ("data", f"{data['class']}({_arguments(data['args'])}), requests {data['hash'][:12]}"),
        ("protocol", f"{results['protocol']}, batch size {results['batch_size']}"),
        ("seed", str(results["seed"])),
        ("status", results["status"]),
        ("versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items())),
        ("folder", str(run.folder)),
    ]
    return [(name, value) for name, value in listed if value]


def _arguments(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items() if value is not None)
