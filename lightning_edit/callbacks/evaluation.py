"""What training does to facts: a callback for anyone's Trainer around a Hugging Face model."""

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from lightning_edit.baseline import Baseline, write_rows
from lightning_edit.callbacks.find import find_language_model, find_tokenizer, is_sharded
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.exceptions import ConfigError
from lightning_edit.handle import as_requests
from lightning_edit.metrics import AspectScores, summarise
from lightning_edit.metrics.aspects import plain
from lightning_edit.records import ProbeScore, ScoredProbe, probes_of
from lightning_edit.scoring import Scorer
from lightning_edit.types import EditRequest, Mode, Probe

log = logging.getLogger(__name__)

#: Aspects that training is not meant to change, and the measures whose change is reported.
_DRIFTING = ("locality", "known")
_DRIFT = ("em@tf", "em@gen", "nll@tf")


class EditEvaluation(Callback):
    """Measures what training does to given facts, and to facts nobody asked to change.

    Works in any project: it finds the Hugging Face model inside the LightningModule, scores the
    probes on it before the first step, and again at every validation or every few steps. Model
    modes, gradients and random numbers are left as they are. Names are those of the library
    (``locality/kept@tf``, ``known/em@gen``, …); ``drift.known/em@tf`` is the change since before
    the first step. Values go to every logger and, for checkpoints and early stopping to watch, to
    ``trainer.callback_metrics``. Under several processes each scores its share of the requests.

    Args:
        requests: Facts that the training is to teach, with their probes; dictionaries need
            ``prompt`` and ``target``.
        probes: Questions beside them, such as ``{"kind": "known_fact", "prompt": "The capital of
            Italy is", "answers": "Rome"}``; kinds as in :class:`~lightning_edit.types.Probe`.
        data: A data module of edits, or a JSONL file of facts, whose requests are used as well.
        tokenizer: The model's tokenizer or its folder; by default the attribute ``tokenizer`` of
            the LightningModule or its data module.
        model_attribute: Dotted name of the language model in the LightningModule; only needed
            where it holds several.
        every_n_steps: Evaluate each time that many optimiser steps have passed; ``None``: never.
        on_validation: Evaluate at the end of every validation.
        modes: ``tf`` teacher forced, ``gen`` generated.
        batch_size: Rows scored together; no score depends on it.
        max_new_tokens: Most tokens to generate, see :class:`~lightning_edit.scoring.Scorer`.
        directory: Folder for one ``step-<n>.jsonl`` an evaluation, one line a probe.
        prefix: Put before every name, e.g. ``"facts/"``; tells several of these callbacks apart.

    Raises:
        ConfigError: If there is nothing to ask.

    Example:
        >>> facts = [{"kind": "known_fact", "prompt": "The capital of Italy is", "answers": "Rome"}]
        >>> callback = EditEvaluation(probes=facts, every_n_steps=100)
        >>> # Trainer(callbacks=[callback]).fit(your_module, your_data)
    """

    def __init__(
        self,
        requests: Sequence[EditRequest | Mapping[str, Any]] = (),
        probes: Sequence[Probe | Mapping[str, Any]] = (),
        data: EditDataModule | str | None = None,
        tokenizer: Any = None,
        model_attribute: str | None = None,
        every_n_steps: int | None = None,
        on_validation: bool = True,
        modes: Sequence[Mode] = ("tf", "gen"),
        batch_size: int = 64,
        max_new_tokens: int | None = None,
        directory: str | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        if not requests and not probes and data is None:
            raise ConfigError(
                "EditEvaluation has nothing to ask; give `requests`, `probes` or `data`"
            )
        self.requests = as_requests(list(requests))
        self.probes = [_as_probe(probe) for probe in probes]
        self.data = data
        self.tokenizer = tokenizer
        self.model_attribute = model_attribute
        self.every_n_steps = every_n_steps
        self.on_validation = on_validation
        self.modes = tuple(modes)
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.directory = None if directory is None else Path(directory)
        self.prefix = prefix
        self.baseline: Baseline | None = None
        self._scorer: Scorer | None = None
        self._values: dict[str, float] = {}
        self._step = 0

    # -------------------------------------------------------------------------------- Lightning

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint."""
        return self._generate_state_key(prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """Return the outcomes before the first step, so that a resumed run compares with them."""
        rows = None if self.baseline is None else self.baseline.to_rows()
        return {"baseline": rows, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers.
        """
        rows = state_dict["baseline"]
        self.baseline = None if rows is None else Baseline.from_rows(rows)
        self._step = state_dict["step"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the model and score it before the first step.

        Args:
            trainer: The trainer.
            pl_module: The module that is trained.

        Raises:
            ConfigError: If the language model or the tokenizer is not found.
        """
        self._scorer = Scorer(
            find_language_model(pl_module, self.model_attribute),
            find_tokenizer(self.tokenizer, trainer, pl_module),
            self.batch_size,
            self.modes,
            self.max_new_tokens,
        )
        if self.baseline is not None:
            return
        if trainer.ckpt_path is not None:
            log.warning(
                "%s was written without EditEvaluation: the baseline is the model as it is there, "
                "not as it was before training",
                trainer.ckpt_path,
            )
        self.baseline = Baseline(_gather(self._score(trainer)))
        self._step = trainer.global_step
        self._write(trainer, self.baseline.scores)
        self._send(trainer, summarise(self.baseline.scores))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Evaluate if enough steps have passed.

        Args:
            trainer: The trainer.
            pl_module: The module that is trained.
            *args: Outputs, batch and its number.
            **kwargs: The same by name.
        """
        if self.every_n_steps and trainer.global_step - self._step >= self.every_n_steps:
            self._evaluate(trainer)
            self._log(trainer, pl_module, on_step=True, on_epoch=False)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate, unless this is the check before training.

        Args:
            trainer: The trainer.
            pl_module: The module that is trained.
        """
        if self.on_validation and not trainer.sanity_checking and self.baseline is not None:
            if trainer.global_step != self._step or not self._values:
                self._evaluate(trainer)
            self._log(trainer, pl_module, on_step=False, on_epoch=True)

    # -------------------------------------------------------------------------------- measuring

    def _score(self, trainer: pl.Trainer) -> list[ProbeScore]:
        """Score this process's share: whole requests, since each is averaged in one place."""
        assert self._scorer is not None  # set in on_fit_start
        units = [probes_of(request) for request in [*self.requests, *self._data_requests()]]
        units += [
            [ScoredProbe(f"{probe.kind}-{number}", probe)]
            for number, probe in enumerate(self.probes)
        ]
        rank, world = trainer.global_rank, trainer.world_size
        if not is_sharded(self._scorer.model):
            return self._scorer.score([probe for unit in units[rank::world] for probe in unit])
        # Each process holds a part of every weight, so all take part in every forward pass.
        scores = iter(self._scorer.score([probe for unit in units for probe in unit]))
        of_units = [list(islice(scores, len(unit))) for unit in units]
        return [score for unit in of_units[rank::world] for score in unit]

    def _data_requests(self) -> list[EditRequest]:
        if self.data is None:
            return []
        if isinstance(self.data, str):
            from lightning_edit.datamodules import JSONLDataModule  # reads files only when asked to

            self.data = JSONLDataModule(self.data)
        self.data.setup("edit")
        return self.data.edit_requests()

    def _evaluate(self, trainer: pl.Trainer) -> None:
        assert self.baseline is not None  # set in on_fit_start
        scores = self.baseline.compare(self._score(trainer))
        metric = AspectScores().to(trainer.strategy.root_device)
        metric.update(scores)
        values = plain(metric.compute())
        before = summarise(self.baseline.scores)
        self._values = values | {
            f"drift.{aspect}/{measure}": values[name] - before[name]
            for aspect in _DRIFTING
            for measure in _DRIFT
            if (name := f"{aspect}/{measure}") in values and name in before
        }
        self._step = trainer.global_step
        if self.directory is not None:
            self._write(trainer, _gather(scores))
        self._send(trainer, self._values)

    # ---------------------------------------------------------------------------------- telling

    def _log(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, on_step: bool, on_epoch: bool
    ) -> None:
        """Show the values to checkpoints and early stopping; the loggers have them already."""
        pl_module.log_dict(
            {self.prefix + name: float(value) for name, value in self._values.items()},
            logger=False,
            on_step=on_step,
            on_epoch=on_epoch,
            # The values are of all processes; averaging equal ones only tells Lightning so.
            sync_dist=trainer.world_size > 1,
            batch_size=1,
        )

    def _send(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        # `self.log` would drop what falls between two of the trainer's logging steps.
        for logger in trainer.loggers:
            named = {self.prefix + name: value for name, value in values.items()}
            logger.log_metrics(named, step=trainer.global_step)

    def _write(self, trainer: pl.Trainer, scores: Sequence[ProbeScore]) -> None:
        if self.directory is not None and trainer.is_global_zero:
            rows = [{"step": trainer.global_step, **score.to_row()} for score in scores]
            write_rows(self.directory / f"step-{trainer.global_step:08d}.jsonl", rows)


def _as_probe(probe: Probe | Mapping[str, Any]) -> Probe:
    if isinstance(probe, Probe):
        return probe
    missing = {"kind", "prompt", "answers"} - probe.keys()
    if missing:
        raise ConfigError(
            f"the probe {dict(probe)} lacks {', '.join(sorted(missing))}; "
            "give every probe `kind`, `prompt` and `answers`"
        )
    return Probe.of(probe["kind"], probe["prompt"], probe["answers"])


def _gather(scores: Sequence[ProbeScore]) -> list[ProbeScore]:
    """Return the outcomes of all processes to each of them."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return list(scores)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, [score.to_row() for score in scores])
    return [ProbeScore.from_row(row) for part in parts for row in part]
