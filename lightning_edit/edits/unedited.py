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

    Raises:
        LedgerError: If somebody else changed an edited weight, whose change would be lost.
    """
    touched = list(ledger.weights.touched.values())
    with exclusive(ledger.model):
        for one in touched:
            one.require_unchanged()
        try:
            for one in touched:
                one.hide()
            if ledger.runtime is not None:
                ledger.runtime.install(())
            yield
        finally:
            for one in touched:
                one.show()
            if ledger.runtime is not None:
                ledger.runtime.install(ledger.in_force)
