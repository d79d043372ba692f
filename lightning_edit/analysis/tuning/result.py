"""Result of a search over settings: ranked trials, their table, advice, and points of the plot."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from lightning_edit.analysis.sweep.layers import RankedTrial, rate
from lightning_edit.analysis.sweep.table import BEST, TIED, ScoreRow, score_table
from lightning_edit.analysis.tuning.trial import GIVEN_UP, GIVEN_UP_BECAUSE, SettingsTrial
from lightning_edit.analysis.tuning.tuning import Tuning
from lightning_edit.types import Mode

#: Trials in the table, the best ones.
_MAX_SHOWN = 8
#: Reasons of impossible trials that are told.
_MAX_FAILURES = 3


@dataclass(frozen=True)
class TuningResult:
    """The trials of a search, the best first.

    Args:
        ranked: Trials that could edit, the best first.
        own: The trial with the editor's own settings; ``None`` if it failed or was not made.
        tried: All trials, in the order in which they were made.
        begins_with_own: Whether the first trial has the editor's own settings.
    """

    ranked: tuple[RankedTrial, ...]
    own: RankedTrial | None
    tried: tuple[SettingsTrial, ...]
    begins_with_own: bool

    @classmethod
    def of(cls, tuning: Tuning) -> "TuningResult":
        """Rank the trials of a search.

        Args:
            tuning: The search.
        """
        ranked = rate(tuning.tried, tuning.seed)
        begins, own = tuning.choices.begins_with_own, None
        if begins:
            own = next((one for one in ranked if one.tried is tuning.tried[0]), None)
        return cls(tuple(ranked), own, tuple(tuning.tried), begins)

    @property
    def best(self) -> RankedTrial | None:
        """The best trial, if it has a score above 0."""
        return self.ranked[0] if self.ranked and self.ranked[0].score > 0 else None

    @property
    def written(self) -> RankedTrial | None:
        """The trial whose settings are written to the file.

        The best one, unless its lead over the editor's own settings is one fact, or within one
        standard error of their difference (after the one-standard-error rule of Breiman et al.,
        Classification and Regression Trees, 1984): of trials that differ by less the best is the
        luckiest, and the editor's own are rules or published values, which owe nothing to these
        facts.
        """
        own, best = self.own, self.best
        return own if best is not None and own is not None and own.near and own.score > 0 else best

    @property
    def shown(self) -> list[RankedTrial]:
        """The trials of the table: the best ones, and the editor's own settings."""
        shown = list(self.ranked[:_MAX_SHOWN])
        return shown if self.own is None or self.own in shown else [*shown, self.own]

    def failures(self) -> list[str]:
        """Return why the first impossible trials were so, a line each, and which were given up."""
        failed = [one for one in self.tried if one.failed not in (None, GIVEN_UP)]
        lines = [f"Impossible: {one.words}: {one.failed}" for one in failed[:_MAX_FAILURES]]
        left = [one.words for one in self.tried if one.failed == GIVEN_UP]
        return lines + [f"Given up: {words}: {GIVEN_UP_BECAUSE}" for words in left[:_MAX_FAILURES]]

    def settings(self) -> list[str]:
        """Return the settings of the trials in the table, a line each."""
        shown = {id(one.tried) for one in self.shown}
        listed = [(number, one) for number, one in enumerate(self.tried, 1) if id(one) in shown]
        lines = [f"Trial {number}: {one.words}" for number, one in listed]
        if any(one.chosen for _, one in listed):
            lines.append("In brackets: what auto was, at the last edit.")
        return lines

    def table(self, title: str, mode: Mode) -> Table:
        """Return the table of the best trials and of the editor's own settings.

        Args:
            title: Title, with markup escaped.
            mode: Scoring mode.
        """
        numbers = {id(one): number for number, one in enumerate(self.tried, 1)}
        rows = [
            ScoreRow.of(self._mark(one), str(numbers[id(one.tried)]), one) for one in self.shown
        ]
        return score_table(title, "trial", rows, mode)

    def _mark(self, one: RankedTrial) -> str:
        if one is self.best:
            return BEST
        if one is self.own:
            return f"own {TIED}" if self.best is not None and one.ties else "own"
        return TIED if self.best is not None and one.ties else ""

    def advice(self, facts: int) -> str:
        """Say what the marks mean and what the search gained over the editor's own settings.

        Args:
            facts: Number of facts of each trial.
        """
        if self.best is None:
            return (
                "In no trial was an edit held, so no settings are written. Look at other layers, "
                "widen the bounds with --space, or take another editor."
            )
        facts_in_words = "1 fact" if facts == 1 else f"{facts} facts"
        text = f"{BEST} best; ± is the standard error of the harmonic mean over {facts_in_words}. "
        if "locality" not in self.best.means:
            text += (
                "These facts have no probes of other answers (locality), so nothing held back the "
                "settings that change the most of them: give the facts `probes` of kind "
                "neighborhood, or take data that has them. "
            )
        if not self.begins_with_own:
            return text + "The editor's own settings lie outside the bounds and were not tried."
        if self.own is self.ranked[0]:
            return text + "The editor's own settings are the best that were found."
        if self.own is None:
            return text + "With its own settings the editor could not edit this model."
        if self.written is self.own:
            return text + (
                "The best trial leads the editor's own settings by one fact, or by less than one "
                "standard error of the difference, so the own ones are written. More --facts tell "
                "smaller differences; settings of other trials are listed above."
            )
        if self.own.ties:
            return text + (
                f"It leads the editor's own settings ({self.own.score:.3f}) by two or three facts, "
                "or by one to two standard errors of the difference: it is written, and may be "
                "luck; edit other facts with both before you use it."
            )
        return text + f"The editor's own settings reach {self.own.score:.3f}."

    def points(self) -> list[tuple[float, float]]:
        """Return locality and success of the edit of each ranked trial, for the plot.

        Empty where no case probes locality.
        """
        measured = [one for one in self.ranked if "locality" in one.means]
        return [(one.means["locality"], success(one)) for one in measured]


def success(one: RankedTrial) -> float:
    """Return the mean of reliability and generalization; 0 if neither was measured."""
    found: Sequence[float] = [
        one.means[name] for name in ("reliability", "generalization") if name in one.means
    ]
    return sum(found) / len(found) if found else 0.0
