"""Base data module of edit requests: splits, limits, seeds, and loaders of ready batches."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerStatus
from torch.utils.data import DataLoader

from lightning_edit.datamodules.conflicts import conflict_warnings, without_conflicts
from lightning_edit.datamodules.fact_checks import with_derived_probes
from lightning_edit.datamodules.loader import (
    Collate,
    CollatesRequests,
    EpochShuffle,
    as_list,
    request_loader,
)
from lightning_edit.datamodules.other_task import other_task_probes
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest, cases_of

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Conflicts = Literal["keep", "drop"]
"""What becomes of cases that edit one fact to different targets."""
_log = logging.getLogger(__name__)


class EditDataModule(LightningDataModule, ABC):
    """Base LightningDataModule of edit requests.

    In a Trainer, its loaders yield what the trained LightningModule asks for: one that defines
    ``collate_requests`` (:class:`~lightning_edit.datamodules.loader.CollatesRequests`), as trained
    editors do, gets ready batches, tokenised in the loader's workers. Any other module, and code
    without a Trainer, gets ``list[EditRequest]``.

    Args:
        limit: Maximum number of requests of each split: the first ones, in the order of the source,
            as in papers that report "the first 1,000 records". ``None`` uses all. The requests of
            one case count as one, so no case is cut.
        seed: Seed of the training loader's order, and of all sampling in a subclass.
        split: The split that :meth:`edit_requests` streams.
        batch_size: Requests per batch of a loader.
        num_workers: Worker processes of the loaders; they make a trained editor's batches.
        other_task: Number of unrelated tasks (arithmetic, spelling, …) added to every request as
            locality probes, sampled with the seed; not in the training split.
        fact_checks: Whether to add to every request with an old target yes/no checks of the new and
            the old fact and of their negations; not in the training split.
        open_questions: Whether to add to every request that has a question (its prompt or a
            rephrasing) the edit as an open question; not in the training split.
        separator: Text between prompt and answer of every request that has none of its own, in all
            splits; may be empty. ``None``: by rule (docs/data.md). A chat template brings its own.
        conflicts: What becomes of cases that cannot hold together: they edit one fact (prompt, or
            subject and relation) to different targets, or one edits a premise of the other.
            ``keep``: they stay, and a warning counts them. ``drop``: only the first is kept, before
            ``limit`` is applied. Not in the training split.
    """

    def __init__(
        self,
        limit: int | None = None,
        seed: int = 0,
        split: str = "test",
        batch_size: int = 1,
        num_workers: int = 0,
        other_task: int = 0,
        fact_checks: bool = False,
        open_questions: bool = False,
        separator: str | None = None,
        conflicts: Conflicts = "keep",
    ) -> None:
        super().__init__()
        self.limit = limit
        self.seed = seed
        self.split = split
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.other_task = other_task
        self.fact_checks = fact_checks
        self.open_questions = open_questions
        self.separator = separator
        self.conflicts: Conflicts = conflicts
        self._loaded: dict[str, list[EditRequest]] = {}
        self._relations: dict[str, str | None] = {}

    @abstractmethod
    def load_split(self, split: str) -> list[EditRequest]:
        """Load every request of ``split`` (``train``, ``val`` or ``test``) in a fixed order.

        Limits are applied afterwards. An empty list means that the source has no such split.

        Raises:
            DataError: If a file or record does not match its format.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load the splits of a stage, so that data errors are raised before training starts.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``edit`` for a stream of edits.
        """
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in wanted.get(stage or "", (self.split,)):
            self.requests(split)

    def requests(self, split: str) -> list[EditRequest]:
        """Return the requests of one split, up to ``limit``, in source order; loaded once."""
        if split not in self._loaded:
            self.check_options(split)
            requests = self.load_split(split)
            if split != "train" and self.conflicts == "drop":
                requests = self._without_conflicts(requests, split)
            requests = self._with_separator(self._apply_limit(requests))
            if split != "train":
                for warning in conflict_warnings(_cases(requests), self._relations):
                    _log.warning("%s, %s split: %s", type(self).__name__, split, warning)
                requests = self._add_probes(requests)
            self._loaded[split] = requests
        return self._loaded[split]

    def _apply_limit(self, requests: list[EditRequest]) -> list[EditRequest]:
        if self.limit is None:
            return requests
        return [request for case in _cases(requests)[: self.limit] for request in case]

    def _without_conflicts(self, requests: list[EditRequest], split: str) -> list[EditRequest]:
        cases = _cases(requests)
        kept = without_conflicts(cases, self._relations)
        if len(kept) < len(cases):
            _log.info(
                "%s: %d of %d cases of the %s split conflict with an earlier one and are left out",
                type(self).__name__, len(cases) - len(kept), len(cases), split,
            )  # fmt: skip
        return [request for number in kept for request in cases[number]]

    def _with_separator(self, requests: list[EditRequest]) -> list[EditRequest]:
        if self.separator is None:
            return requests
        return [
            request if request.separator is not None else replace(request, separator=self.separator)
            for request in requests
        ]

    def _add_probes(self, requests: list[EditRequest]) -> list[EditRequest]:
        requests = [
            with_derived_probes(request, self.fact_checks, self.open_questions)
            for request in requests
        ]
        if not self.other_task:
            return requests
        return [
            replace(
                request,
                probes=(
                    *request.probes,
                    *other_task_probes(self.other_task, f"{self.seed}/{request.id}"),
                ),
            )
            for request in requests
        ]

    def check_options(self, split: str) -> None:
        """Validate the options, before the first split is loaded.

        The constructor does not validate: jsonargparse would wrap the message in an error of its
        own.

        Raises:
            DataError: With the option, the expected and the given value.
        """
        limit, size, workers = self.limit, self.batch_size, self.num_workers
        _require(limit is None or limit >= 1, "limit", "a number of at least 1, or null", limit)
        _require(split in SPLITS, "split", f"one of {', '.join(SPLITS)}", split)
        _require(size >= 1, "batch_size", "a number of at least 1", size)
        _require(workers >= 0, "num_workers", "0 or more", workers)
        _require(self.other_task >= 0, "other_task", "0 or more", self.other_task)
        known = self.conflicts in get_args(Conflicts)
        _require(known, "conflicts", "keep or drop", self.conflicts)
        between = self.separator
        is_text = between is None or isinstance(between, str)
        _require(is_text, "separator", 'text ("" for nothing), or null', between)

    def edit_requests(self) -> list[EditRequest]:
        """Return the stream of edit requests: those of the split ``split``.

        Raises:
            DataError: If the split is empty.
        """
        return self._nonempty_requests(self.split)

    def data_hash(self) -> str:
        """Return the SHA-256 hash of the edit stream, probes included, for the record of a run."""
        canonical = json.dumps(
            [request.to_dict() for request in self.edit_requests()],
            sort_keys=True,
            ensure_ascii=False,
            separators=(",", ":"),
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    def train_dataloader(self) -> DataLoader[EditRequest]:
        """Return the shuffled training loader; its order depends on ``seed`` and the epoch."""
        requests = self._nonempty_requests("train")
        # `overfit_batches` repeats the first batches, in order; the loader's own order would not.
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        order = None if overfit else EpochShuffle(len(requests), self.seed)
        return self._loader("train", requests, order, self._batches_done)

    def _batches_done(self) -> int:
        """Return how many batches of the epoch a resumed training has behind it."""
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def val_dataloader(self) -> DataLoader[EditRequest] | list[Any]:
        """Return the validation loader, in order; no loader if the source has no such split."""
        requests = self.requests("val")
        return self._loader("val", requests) if requests else []

    def test_dataloader(self) -> DataLoader[EditRequest]:
        """Return the test loader, in order."""
        return self._loader("test", self._nonempty_requests("test"))

    def predict_dataloader(self) -> DataLoader[EditRequest]:
        """Return a loader of plain requests of the split ``split``, in order."""
        requests = self._nonempty_requests(self.split)
        return request_loader(requests, self.batch_size, None, as_list, self.num_workers)

    def _nonempty_requests(self, split: str) -> list[EditRequest]:
        requests = self.requests(split)
        if not requests:
            raise DataError(
                f"{type(self).__name__} has no requests in its {split} split; "
                "choose another `split`, or give the data set a source for this one"
            )
        return requests

    def _loader(
        self,
        stage: str,
        requests: list[EditRequest],
        order: EpochShuffle | None = None,
        done: Callable[[], int] | None = None,
    ) -> DataLoader[EditRequest]:
        collate = self._collate(stage, requests)
        return request_loader(requests, self.batch_size, order, collate, self.num_workers, done)

    def _collate(self, stage: str, requests: list[EditRequest]) -> Collate:
        """Return the collate function of the LightningModule that the Trainer runs, if any."""
        running = self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING
        module = self.trainer.lightning_module if self.trainer is not None and running else None
        if isinstance(module, CollatesRequests):
            return module.collate_requests(stage, requests)
        return as_list


def _cases(requests: list[EditRequest]) -> list[list[EditRequest]]:
    try:
        return cases_of(requests)
    except ValueError as error:
        raise DataError(str(error)) from error


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise DataError(f"`{name}` of a data set must be {expected}; got {got!r}")
