"""DataLoader of edit requests whose batches know their epoch and step: seeded work in workers.

A collate function gets the items of a batch and nothing else. Here the batch sampler sends the
epoch and the batch index along with the indices, through the queue of a worker too, so that a
collate can seed its choices with them: the same batches with any number of workers, and in a
training that was resumed, also inside an epoch.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    Sampler,
    SequentialSampler,
)

from lightning_edit.types import EditRequest

Collate = Callable[[list[EditRequest]], Any]


@runtime_checkable
class CollatesRequests(Protocol):
    """A LightningModule that says how its batches are made from requests."""

    def collate_requests(self, stage: str, requests: Sequence[EditRequest]) -> Collate:
        """Return the collate function of a loader.

        Args:
            stage: ``train``, ``val`` or ``test``.
            requests: All requests of the loader.

        Returns:
            A picklable function of the requests of one batch, which are :class:`StepRequests`.
        """


class StepPlaces(list[int]):
    """Places of one batch in the order of its epoch, with the batch's place in training.

    Args:
        places: Places in the order of the epoch.
        epoch: Epoch, from 0.
        batch_idx: Index of the batch in the epoch.
        beside: Places of this step on all processes; ``None``: these alone.
    """

    def __init__(
        self,
        places: Sequence[int] = (),
        epoch: int = 0,
        batch_idx: int = 0,
        beside: Sequence[int] | None = None,
    ) -> None:
        super().__init__(places)
        self.epoch = epoch
        self.batch_idx = batch_idx
        self.beside = list(places if beside is None else beside)


class StepRequests(list[EditRequest]):
    """Requests of one batch, with the batch's place in training.

    Args:
        requests: The requests.
        epoch: Epoch, from 0.
        batch_idx: Index of the batch in the epoch.
        beside: Requests of this step on all processes, which one update may write together;
            ``None``: these alone.
    """

    def __init__(
        self,
        requests: Sequence[EditRequest] = (),
        epoch: int = 0,
        batch_idx: int = 0,
        beside: Sequence[EditRequest] | None = None,
    ) -> None:
        super().__init__(requests)
        self.epoch = epoch
        self.batch_idx = batch_idx
        self.beside = list(requests if beside is None else beside)


def as_list(batch: list[EditRequest]) -> list[EditRequest]:
    """Collate a batch as the plain list of requests, for modules that take text."""
    return list(batch)


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


class RequestDataset(Dataset[EditRequest]):
    """Map-style data set of edit requests that reads a whole batch with its place in training.

    The order of the epochs is its own, not a sampler's, because Lightning makes samplers anew.

    Args:
        requests: The requests.
        order: Order of the requests in each epoch; ``None``: as given.
    """

    def __init__(self, requests: Sequence[EditRequest], order: EpochShuffle | None = None) -> None:
        self.requests = requests
        self.order = order
        self._read: tuple[int, list[int]] | None = None  # an epoch and its order

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> EditRequest:
        return self.requests[index]

    def __getitems__(self, places: list[int]) -> StepRequests:
        """Read the requests of one batch; torch's loader prefers this to one call an item."""
        assert isinstance(places, StepPlaces)  # they come from StepBatchSampler
        here, beside = (self._at(part, places.epoch) for part in (places, places.beside))
        return StepRequests(here, places.epoch, places.batch_idx, beside)

    def _at(self, places: Sequence[int], epoch: int) -> list[EditRequest]:
        if self.order is None:
            return [self.requests[place] for place in places]
        if self._read is None or self._read[0] != epoch:
            self.order.set_epoch(epoch)
            self._read = epoch, list(self.order)
        return [self.requests[self._read[1][place]] for place in places]


class EpochSampler(SequentialSampler):
    """Sequential sampler that knows the epoch; Lightning sets it before every epoch.

    Args:
        data_source: The data set.
    """

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch."""
        self.epoch = epoch


class StepBatchSampler(BatchSampler):
    """Batch sampler that sends epoch and batch index along with the places of a batch.

    ``sampler`` walks over places in the order of the epoch. Under DDP, Lightning makes another of
    these with a ``DistributedSampler``, by the arguments that every batch sampler has; each process
    then walks over its share of the places, in turn, so that n processes with batches of m
    requests see in a step what one process sees with n·m.

    Args:
        sampler: Sampler of places, with an attribute ``epoch``.
        batch_size: Requests per batch.
        drop_last: Whether to leave out a last batch that is not full.

    Attributes:
        start: Index of the batch that the next epoch's walk begins with, and it alone.
    """

    start = 0

    def __init__(self, sampler: Sampler[int], batch_size: int, drop_last: bool) -> None:
        super().__init__(sampler, batch_size, drop_last)
        shared = sampler.dataset if isinstance(sampler, DistributedSampler) else None
        if isinstance(shared, RequestDataset) and shared.order is not None:
            sampler.shuffle = False  # type: ignore[attr-defined]  # the order is shuffled already

    def __iter__(self) -> Iterator[list[int]]:
        epoch = int(getattr(self.sampler, "epoch", 0))
        start, self.start = self.start, 0
        shares = self._shares()
        for batch_idx, places in enumerate(islice(super().__iter__(), start, None), start):
            step = slice(batch_idx * self.batch_size, (batch_idx + 1) * self.batch_size)
            beside = [place for share in shares for place in share[step]] or places
            yield StepPlaces(places, epoch, batch_idx, beside)

    def _shares(self) -> list[list[int]]:
        """Return the places that each process walks over; empty for one process."""
        own = self.sampler
        # Subclasses of Lightning's own deal in other ways, for validation and for users' samplers.
        plain = type(own).__iter__ is DistributedSampler.__iter__
        if not isinstance(own, DistributedSampler) or not plain or own.shuffle:
            return []
        return [
            list(
                DistributedSampler(
                    own.dataset, own.num_replicas, rank, shuffle=False, drop_last=own.drop_last
                )
            )
            for rank in range(own.num_replicas)
        ]


class RequestLoader(DataLoader[EditRequest]):
    """DataLoader that begins each epoch when its first batch is asked for, and may begin inside.

    Lightning makes the iterator of a resumed training before it tells the sampler the epoch, and
    workers would read the first epoch's batches ahead. It also has every loader begin an epoch with
    its first batch, unless the loader has a state.

    Args:
        dataset: The data set.
        done: Returns how many batches of the epoch were trained on before, in a resumed training;
            ``None``: always none.
        **options: Arguments of ``DataLoader``, with a :class:`StepBatchSampler`.
    """

    def __init__(
        self,
        dataset: Dataset[EditRequest],
        done: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dataset, **options)
        self.done = done
        self._resumed = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # of torch's own class of them
        if self._resumed and self.done and isinstance(self.batch_sampler, StepBatchSampler):
            # Beside a longer loader it may have begun again in this epoch.
            self.batch_sampler.start = self.done() % max(1, len(self))
        self._resumed = False
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the place in the epoch is part of Lightning's own progress."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next epoch, and it alone, behind the batches that are done."""
        self._resumed = True


def request_loader(
    requests: Sequence[EditRequest],
    batch_size: int = 1,
    order: EpochShuffle | None = None,
    collate: Collate = as_list,
    num_workers: int = 0,
    done: Callable[[], int] | None = None,
) -> DataLoader[EditRequest]:
    """Build a loader of edit requests whose collate function knows epoch and batch index.

    Args:
        requests: The requests.
        batch_size: Requests per batch.
        order: Order of the requests in each epoch; ``None``: as given.
        collate: Makes a batch from :class:`StepRequests`; picklable.
        num_workers: Worker processes that collate.
        done: Returns how many batches of the epoch a resumed training has behind it.
    """
    data = RequestDataset(requests, order)
    batches = StepBatchSampler(EpochSampler(data), batch_size, drop_last=False)
    return RequestLoader(
        data,
        done,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        persistent_workers=num_workers > 0,
    )
