"""Base data module of edit requests: splits, limits, seeds, and loaders of plain lists."""

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_edit.datamodules.other_task import other_task_probes
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest, cases_of

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def as_list(batch: list[EditRequest]) -> list[EditRequest]:
    """Collate a batch as the plain list of requests; tokenisation comes later."""
    return batch


class EpochShuffle(Sampler[int]):
    """Shuffling sampler whose order depends on the seed and the epoch alone, for exact resume.

    A training run resumed at an epoch sees the batches of an uninterrupted run; ``shuffle=True``
    would start again with the order of the first epoch.

    Args:
        size: Number of requests.
        seed: Seed of the orders.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the order. Lightning calls it before every epoch, also on resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return iter(order)


class EditDataModule(LightningDataModule, ABC):
    """Base LightningDataModule of edit requests, with loaders that yield ``list[EditRequest]``.

    Args:
        limit: Maximum number of requests of each split: the first ones, in the order of the source,
            as in papers that report "the first 1,000 records". ``None`` uses all. The requests of
            one case count as one, so no case is cut.
        seed: Seed of the training loader's order, and of all sampling in a subclass.
        split: The split that :meth:`edit_requests` streams.
        batch_size: Requests per batch of a loader.
        num_workers: Worker processes of the loaders; 0 is enough unless parsing is slow.
        other_task: Number of unrelated tasks (arithmetic, spelling, …) added to every request as
            locality probes, sampled with the seed; not in the training split.
    """

    def __init__(
        self,
        limit: int | None = None,
        seed: int = 0,
        split: str = "test",
        batch_size: int = 1,
        num_workers: int = 0,
        other_task: int = 0,
    ) -> None:
        super().__init__()
        self.limit = limit
        self.seed = seed
        self.split = split
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.other_task = other_task
        self._loaded: dict[str, list[EditRequest]] = {}

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
            requests = self._apply_limit(self.load_split(split))
            self._loaded[split] = (
                requests if split == "train" else self._add_other_task_probes(requests)
            )
        return self._loaded[split]

    def _apply_limit(self, requests: list[EditRequest]) -> list[EditRequest]:
        if self.limit is None:
            return requests
        try:
            cases = cases_of(requests)
        except ValueError as error:
            raise DataError(str(error)) from error
        return [request for case in cases[: self.limit] for request in case]

    def _add_other_task_probes(self, requests: list[EditRequest]) -> list[EditRequest]:
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
        return self._loader(self._nonempty_requests("train"), shuffle=True)

    def val_dataloader(self) -> DataLoader[EditRequest] | list[Any]:
        """Return the validation loader, in order; no loader if the source has no such split."""
        requests = self.requests("val")
        return self._loader(requests) if requests else []

    def test_dataloader(self) -> DataLoader[EditRequest]:
        """Return the test loader, in order."""
        return self._loader(self._nonempty_requests("test"))

    def _nonempty_requests(self, split: str) -> list[EditRequest]:
        requests = self.requests(split)
        if not requests:
            raise DataError(
                f"{type(self).__name__} has no requests in its {split} split; "
                "choose another `split`, or give the data set a source for this one"
            )
        return requests

    def _loader(
        self, requests: Sequence[EditRequest], shuffle: bool = False
    ) -> DataLoader[EditRequest]:
        return DataLoader(
            cast("Dataset[EditRequest]", requests),
            batch_size=self.batch_size,
            sampler=EpochShuffle(len(requests), self.seed) if shuffle else None,
            num_workers=self.num_workers,
            collate_fn=as_list,
            persistent_workers=self.num_workers > 0,
        )


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise DataError(f"`{name}` of a data set must be {expected}; got {got!r}")
