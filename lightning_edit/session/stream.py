"""Stream of edits: resumable batches of tokenised requests, and evaluation points."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence, Sized
from itertools import accumulate
from typing import Any

from lightning_edit.edits.edit_loop import encode_cases
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.types import EditBatch, EditRequest, Protocol, cases_of

log = logging.getLogger(__name__)

EvalPoint = int | str


class EditStream:
    """Resumable dataloader of edit batches, in order.

    A plain ``DataLoader`` restarts at its first item after a resume; this one keeps its position in
    the checkpoint. The position counts *committed* batches, not yielded ones.

    Every request is tokenised once, here, so that errors are raised before the first edit.

    Args:
        requests: The requests.
        tokenizer: Tokenizer of the edited language model, such as ``editor.prompts``.
        protocol: ``single``: every case alone on the pristine model (a batch shares only the
            search). ``batch``: all at once. ``sequential``: batch after batch on one model.
        batch_size: Cases per step, for ``single`` and ``sequential``. A case is one request, or the
            requests that share a case name; a batch never splits one.
        seed: Seed of everything random in an edit; the same for every request, so that results do
            not depend on the batches of the stream.

    Raises:
        DataError: If there are no requests, two share an id, a case is scattered, or a request
            cannot be tokenised.
        ConfigError: If the batch size is below 1.
    """

    def __init__(
        self,
        requests: Sequence[EditRequest],
        tokenizer: Any,
        protocol: Protocol,
        batch_size: int = 1,
        seed: int = 0,
    ) -> None:
        if not requests:
            raise DataError("a stream of edits needs at least one request; check split and limit")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        ids = [request.id for request in requests]
        if len(set(ids)) < len(ids):
            double = next(name for name in ids if ids.count(name) > 1)
            raise DataError(f"two requests have the id {double!r}; give every request its own id")
        try:
            cases = cases_of(requests)
        except ValueError as error:
            raise DataError(str(error)) from error
        size = len(cases) if protocol == "batch" else batch_size
        self.requests = list(requests)
        self.protocol: Protocol = protocol
        self.batch_size = batch_size
        self.seed = seed
        self.batches = list(encode_cases(tokenizer, cases, size, seed))
        #: Requests before each batch.
        self.starts = [0, *accumulate(len(batch) for batch in self.batches)]
        plan = [[request.to_dict() for request in batch.requests] for batch in self.batches]
        self.digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        self.committed = 0
        self._start = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[EditBatch]:
        start, self._start = self._start, 0
        yield from self.batches[start:]

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state: the number of committed batches."""
        return {"committed": self.committed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position of a checkpoint.

        Args:
            state: State of :meth:`state_dict`.
        """
        self._start = self.committed = int(state["committed"])


def evaluation_points(eval_at: Sequence[EvalPoint] | None, batches: Sequence[Sized]) -> set[int]:
    """Convert ``eval_at`` to evaluation points, as numbers of edits.

    An evaluation runs after the batch that reaches a point.

    Args:
        eval_at: Numbers of edits, and ``"end"``. ``None``: only the end. 0 is the pristine model,
            which is always evaluated first.
        batches: The batches of the stream.

    Returns:
        Numbers of edits after which the stream is evaluated.

    Raises:
        ConfigError: On a point that is neither a number of edits inside the stream nor ``"end"``.
    """
    totals = [0]
    for batch in batches:
        totals.append(totals[-1] + len(batch))
    points = set()
    for point in ["end"] if eval_at is None else eval_at:
        value = totals[-1] if point == "end" else point
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if not isinstance(value, int) or value < 0:
            raise ConfigError(
                f"eval_at has {point!r}; expected numbers of edits and 'end', as in [1, 10, end]"
            )
        # Points beyond the stream are skipped, so that one list works for streams of any length.
        reached = next((total for total in totals if total >= value), None)
        if reached:
            points.add(reached)
        elif value:
            log.warning(
                "eval_at has %d, but the stream has %d edits, so there is nothing to evaluate "
                "there",
                value,
                totals[-1],
            )
    return points
