"""Edit loop of every protocol and study: encode cases, find deltas, write one, take it back.

Protocols ``batch`` and ``sequential`` commit what :func:`find` yields. ``single`` commits and
undoes what :func:`find_alone` yields, so that its journal tells of every edit. Studies that keep no
journal stage what :func:`deltas_alone` yields, with :func:`written_alone`.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.protocols import BoundEditor
from lightning_edit.edits.staged import StagedEdit
from lightning_edit.exceptions import NotFiniteError, SolveError
from lightning_edit.types import EditBatch, EditRequest

T = TypeVar("T")


def encode_cases(
    tokenizer: Any, cases: Sequence[Sequence[EditRequest]], size: int, seed: int = 0
) -> Iterator[EditBatch]:
    """Tokenise cases, in batches that divide none.

    Args:
        tokenizer: Tokenizer of the language model; see :func:`encode_batch`.
        cases: Requests that belong together, mostly one each.
        size: Cases per batch.
        seed: Seed of everything random in the edits.

    Yields:
        The batches, in order.

    Raises:
        DataError: If a request cannot be tokenised.
    """
    for start in range(0, len(cases), size):
        requests = [request for case in cases[start : start + size] for request in case]
        yield encode_batch(tokenizer, requests, seed)


def parts(editor: BoundEditor, batch: EditBatch) -> list[EditBatch]:
    """Return the parts of a batch that an editor finds one delta for: one request each, or all.

    Args:
        editor: A bound editor.
        batch: The requests.
    """
    return [batch] if editor.batched else batch.split()


def find(editor: BoundEditor, batch: EditBatch) -> Iterator[tuple[EditBatch, Delta]]:
    """Find the deltas of requests that stay in force together.

    An editor that is not ``batched`` gets one request at a time, and is asked for the next one only
    when the loop goes on: commit a delta first, so that the next is found on the edited model.

    Args:
        editor: A bound editor.
        batch: The requests.

    Yields:
        The requests of a delta, and the delta.
    """
    for part in parts(editor, batch):
        yield part, editor.edit(part)


def find_alone(
    editor: BoundEditor, batch: EditBatch
) -> Iterator[tuple[EditBatch, Iterator[tuple[EditBatch, Delta]]]]:
    """Find the edit of each case as if it were the only one; write and undo it before the next.

    Args:
        editor: A bound editor. Cases of one request share its search (``edit_independent``).
        batch: The cases.

    Yields:
        Each case, and its deltas as of :func:`find`: the edits of one case depend on each other.
    """
    for case, delta in _independent(editor, batch):
        yield case, find(editor, case) if delta is None else iter([(case, delta)])


def deltas_alone(
    editor: BoundEditor, batches: Iterable[EditBatch]
) -> Iterator[tuple[EditBatch, Delta]]:
    """Find one delta for each case, as if the case were the only one.

    Args:
        editor: A bound editor. An editor that is not ``batched`` joins the updates of a case.
        batches: The cases, in batches that share a search; results do not depend on their size.

    Yields:
        Each case and its delta, in order.
    """
    for batch in batches:
        for case, delta in _independent(editor, batch):
            yield case, editor.edit(case) if delta is None else delta


def _independent(editor: BoundEditor, batch: EditBatch) -> Iterator[tuple[EditBatch, Delta | None]]:
    """Yield the cases of a batch; those of one request with their deltas, found together."""
    cases = batch.cases()
    alone = [case for case in cases if len(case) == 1]
    found: dict[tuple[str, ...], Delta] = {}
    if alone:
        requests = tuple(case.requests[0] for case in alone)
        encoded = tuple(case.encoded[0] for case in alone)
        try:
            deltas = editor.edit_independent(EditBatch(requests, encoded, batch.seed))
            found = dict(zip((case.ids for case in alone), deltas, strict=True))
        except (NotFiniteError, SolveError):
            # One of them fails the search of all; each is found by itself, and it fails alone.
            found = {}
    for case in cases:
        yield case, found.pop(case.ids, None)


def written_alone(
    ledger: Ledger, found: Iterable[tuple[EditBatch, Delta]]
) -> Generator[tuple[EditBatch, StagedEdit]]:
    """Write each delta alone, and take it back when the loop goes on.

    Example::

        for case, trial in written_alone(ledger, deltas_alone(editor, batches)):
            scores += evaluation.scores(case.requests)

    Args:
        ledger: Ledger of the model; one without a folder, since nothing is to be kept.
        found: Cases with their deltas, such as those of :func:`deltas_alone`.

    Yields:
        Each case and its staged edit; the model has the bits that a commit would give it.

    Raises:
        NotFiniteError: If a delta, or a weight with it, is not finite. The model is unchanged.
    """
    for case, delta in found:
        with ledger.staged(delta, case.requests) as trial:
            yield case, trial


class Stopwatch:
    """Stopwatch of an iterator: wall and CPU seconds that its items took to make.

    CPU time as well, since wall time includes other load of the machine.
    """

    def __init__(self) -> None:
        self.wall = 0.0
        self.cpu = 0.0

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items and add the time that each took; the time between them is not counted.

        Args:
            items: Items that are computed when they are asked for.
        """
        source = iter(items)
        while True:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                item = next(source)
            except StopIteration:
                return
            finally:
                self.wall += time.perf_counter() - wall
                self.cpu += time.process_time() - cpu
            yield item

    def take(self) -> tuple[float, float]:
        """Return the wall and CPU seconds so far, and begin again at zero."""
        taken = self.wall, self.cpu
        self.wall = self.cpu = 0.0
        return taken
