"""Sequential search over settings by Optuna's tree-structured Parzen estimator (TPE)."""

import importlib.util
import random
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_edit.analysis.tuning.space import AUTO, Dimension, Setting
from lightning_edit.exceptions import ConfigError

INSTALL = 'pip install "lightning-edit[tune]"'
#: Settings that are drawn at random before the estimator proposes any.
STARTUP = 8
#: Whether the rule decides on a setting.
_EITHER = (True, False)

Settings = dict[str, Setting]


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
    own settings, its rules (``auto``) included; later ones take a rule or a number for these, as
    two branches of a conditional space. TPE: Bergstra et al., NeurIPS 2011.

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

    def tell(self, settings: Mapping[str, Setting], score: float) -> None:
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
        # A digest: with seed + number, searches of neighbouring seeds would share their draws, and
        # the second trial of seed 0 had rates at their lower bound (NumPy's seed 1 draws 1e-4).
        sampler = self._optuna.samplers.TPESampler(
            seed=random.Random(f"{self.seed}:{len(self._told)}").getrandbits(32),
            n_startup_trials=STARTUP,
        )
        study = self._optuna.create_study(direction="maximize", sampler=sampler)
        for settings, score in self._told:
            known = self._known(settings)
            study.add_trial(
                self._optuna.trial.create_trial(
                    params={name: value for name, (value, _) in known.items()},
                    distributions={name: kind for name, (_, kind) in known.items()},
                    value=score,
                )
            )
        trial = study.ask()
        return {one.name: self._propose(trial, one) for one in self.space}

    def _known(self, settings: Mapping[str, Setting]) -> dict[str, tuple[Any, Any]]:
        """Return the value and the distribution of each parameter of told settings."""
        found: dict[str, tuple[Any, Any]] = {}
        for one in self.space:
            value = settings[one.name]
            if one.may_be_auto:
                either = self._optuna.distributions.CategoricalDistribution(_EITHER)
                found[_branch(one)] = (value == AUTO, either)
            if value != AUTO:
                found[one.name] = (value, self._distribution(one))
        return found

    def _propose(self, trial: Any, one: Dimension) -> Setting:
        if one.may_be_auto and trial.suggest_categorical(_branch(one), _EITHER):
            return AUTO
        if one.integer:
            return int(trial.suggest_int(one.name, int(one.low), int(one.high), log=one.log))
        return float(trial.suggest_float(one.name, one.low, one.high, log=one.log))

    def _distribution(self, one: Dimension) -> Any:
        if one.integer:
            kind = self._optuna.distributions.IntDistribution
            return kind(int(one.low), int(one.high), log=one.log)
        return self._optuna.distributions.FloatDistribution(one.low, one.high, log=one.log)


def _branch(one: Dimension) -> str:
    """Name of the parameter that says whether the rule decides."""
    return f"{one.name} is {AUTO}"


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
