"""The model of a ledger as it was before its edits, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_edit.edits.exclusive import exclusive
from lightning_edit.edits.ledger import Ledger


@contextmanager
def unedited(ledger: Ledger) -> Iterator[None]:
    """Take all edits in force out of the model inside a ``with`` block, and put them back after it.

    The ledger's own list does not change; afterwards the model has the bits that it had.

    Args:
        ledger: The ledger; no edit may be tried on its model meanwhile.
    """
    names = list(ledger.weights.touched)
    with exclusive(ledger.model):
        try:
            _install(ledger, names, edited=False)
            yield
        finally:
            _install(ledger, names, edited=True)


def _install(ledger: Ledger, names: list[str], edited: bool) -> None:
    deltas = ledger.in_force if edited else ()
    ledger.weights.rebuild(names, deltas)
    if ledger.runtime is not None:
        ledger.runtime.install(deltas)
