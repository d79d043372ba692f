"""Sequential search over settings by Optuna's tree-structured Parzen estimator (TPE)."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_edit.analysis.tuning.space import Dimension
from lightning_edit.exceptions import ConfigError

INSTALL = 'pip install "lightning-edit[tune]"'
#: Settings that are drawn at random before the estimator proposes any.
STARTUP = 8

Settings = dict[str, int | float]


def require_optuna() -> None:
    """Check that Optuna is installed, before any work is done.

    Raises:
        ConfigError: If it is not.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(f"`tune` searches with Optuna, which is not installed: {INSTALL}")


class SettingsSearch:
    """Proposes settings, given the scores of those that were tried.

    A proposal depends on the seed and on what was told, in order, and on nothing else: a search
    that is told its record goes on as if it had never stopped. The first proposal is the editor's
    own settings. TPE: Bergstra et al., NeurIPS 2011.

    Args:
        space: The searched settings.
        seed: Seed of the proposals.
    """

    def __init__(self, space: Sequence[Dimension], seed: int) -> None:
        require_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.seed = list(space), seed
        self._optuna = optuna
        self._told: list[tuple[Settings, float]] = []

    def tell(self, settings: Mapping[str, int | float], score: float) -> None:
        """Record the score of settings.

        Args:
            settings: Values by name.
            score: What is maximised, 0 to 1; of a trial that failed 0.
        """
        self._told.append((dict(settings), score))

    def ask(self) -> Settings:
        """Return the settings to try next."""
        if not self._told:
            return {one.name: one.start for one in self.space}
        sampler = self._optuna.samplers.TPESampler(
            seed=self.seed + len(self._told), n_startup_trials=STARTUP
        )
        study = self._optuna.create_study(direction="maximize", sampler=sampler)
        distributions = {one.name: self._distribution(one) for one in self.space}
        for settings, score in self._told:
            study.add_trial(
                self._optuna.trial.create_trial(
                    params=settings, distributions=distributions, value=score
                )
            )
        trial = study.ask(distributions)
        return {name: trial.params[name] for name in distributions}

    def _distribution(self, one: Dimension) -> Any:
        if one.integer:
            kind = self._optuna.distributions.IntDistribution
            return kind(int(one.low), int(one.high), log=one.log)
        return self._optuna.distributions.FloatDistribution(one.low, one.high, log=one.log)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points that no other is as good as in both values and better in one.

    Args:
        points: Pairs of values, both the larger the better.
    """
    return [
        place
        for place, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
    ]
