"""Imports without garbage collection: a fifth of the time of a first import of torch and Lightning.

Nothing that an import makes is garbage, but Python looks through all of it again and again while it
grows to some thousand modules. Nothing here imports torch.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Switch garbage collection off inside the ``with`` block; after it, it is as it was."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
