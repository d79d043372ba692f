"""Search over settings with its record on disk: what was tried is told before more is proposed."""

import time
from collections.abc import Callable

from lightning_edit.analysis.sweep.layers import rate
from lightning_edit.analysis.tuning.choices import Choices
from lightning_edit.analysis.tuning.search import STARTUP, Settings, SettingsSearch
from lightning_edit.analysis.tuning.trial import GIVEN_UP, SettingsTrial
from lightning_edit.storage.study_rows import ResumableRows

Attempt = Callable[[list[int], Settings], SettingsTrial]
"""Edits and scores every case with layers and other settings."""


class Tuning:
    """A resumable search: its choices, its record, and the time that it has spent.

    Args:
        choices: What is searched.
        seed: Seed of the proposals and of the bootstrap.
        rows: The record; trials in it count as tried.
    """

    def __init__(self, choices: Choices, seed: int, rows: ResumableRows) -> None:
        self.choices, self.seed, self.rows = choices, seed, rows
        self.search = SettingsSearch(choices.space, seed)
        self.tried: list[SettingsTrial] = []
        #: Seconds of trials, over all resumes together.
        self.spent = 0.0
        for row in rows.rows:
            self._take(SettingsTrial.from_row(row["trial"]), row["proposed"], row["seconds"])

    @property
    def best_score(self) -> float:
        """Largest harmonic mean so far; 0 before the first trial that could edit."""
        return max((one.score for one in rate(self.tried, self.seed)), default=0.0)

    def is_over(self, budget: float, trials: int | None) -> bool:
        """Return whether the budget or the number of trials is used up, or no trial would help.

        A trial with the largest score there is cannot be beaten. Impossible trials take no time, so
        the budget alone would not end a search of them.

        Args:
            budget: Seconds of trials, over all resumes together.
            trials: Largest number of trials; ``None``: any number.
        """
        impossible = [one for one in self.tried if one.failed not in (None, GIVEN_UP)]
        if len(self.tried) >= STARTUP and len(impossible) == len(self.tried):
            return True
        if self.best_score == 1.0:
            return True
        return self.spent >= budget or (trials is not None and len(self.tried) >= trials)

    def step(self, attempt: Attempt) -> None:
        """Try the next settings and add the trial to the record.

        Args:
            attempt: Runs a trial.
        """
        began = time.perf_counter()
        proposed = self.search.ask()
        trial = attempt(self.choices.layers_of(proposed), self.choices.numbers_of(proposed))
        seconds = time.perf_counter() - began
        row = {"proposed": proposed, "seconds": round(seconds, 3), "trial": trial.to_row()}
        self.rows.append([row])
        self._take(trial, proposed, seconds)

    def _take(self, trial: SettingsTrial, proposed: Settings, seconds: float) -> None:
        self.tried.append(trial)
        self.spent += seconds
        rated = rate([trial], self.seed)
        self.search.tell(proposed, rated[0].score if rated else 0.0)
