"""The model of a ledger without one of its commits, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.entries import Entry
from lightning_edit.edits.exclusive import exclusive
from lightning_edit.edits.ledger import Ledger


@contextmanager
def left_out(ledger: Ledger, entry: Entry) -> Iterator[list[Delta]]:
    """Take one commit out of the model inside a ``with`` block, and put it back after it.

    Weights inside are those after an undo of the commit, up to the rounding of their float64 sum;
    afterwards the model has the bits that it had. Nothing is written to the journal.

    Args:
        ledger: The ledger; no edit may be tried on its model meanwhile.
        entry: A commit in force.

    Yields:
        The deltas that are left in force.
    """
    delta = ledger.in_force.delta(entry)
    acts = ledger.runtime is not None and bool(delta.state or delta.prompts)
    others = [one for one in ledger.in_force.entries if one.seq != entry.seq]
    # Only what acts at run time is built from, and asked with, the whole list.
    left = [] if ledger.runtime is None else [ledger.in_force.delta(one) for one in others]
    touched = [(ledger.weights.touched[name], update) for name, update in delta.weights.items()]
    with exclusive(ledger.model):
        try:
            for one, update in touched:
                total = one.total - update.dense(device=one.total.device)
                one.handle.write(one.pristine.double() + total)
            if acts and ledger.runtime is not None:
                ledger.runtime.install(left)
            yield left
        finally:
            for one, _ in touched:
                one.show()
            if acts and ledger.runtime is not None:
                ledger.runtime.install(ledger.in_force)
