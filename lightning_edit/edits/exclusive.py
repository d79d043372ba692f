"""One edit at a time on one model, and in its own precision: guards around solve and commit.

Some editors write trial weights into the model while they solve, so that a second thread would
solve from them. Autocast would round the passes of an edit to half precision.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from lightning_edit.models.eval_mode import in_eval_mode

log = logging.getLogger(__name__)

_NAME = "_lightning_edit_lock"


class ModelLock:
    """Reentrant lock that belongs to a model; a copy of the model gets a lock of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.told = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelLock":
        return ModelLock()

    def __reduce__(self) -> tuple[type["ModelLock"], tuple[()]]:
        return ModelLock, ()


def model_lock(model: Any) -> ModelLock:
    """Return the lock of a model, made at its first use.

    Args:
        model: The language model.
    """
    # Of a dictionary, `setdefault` is atomic: two threads get one lock.
    lock: ModelLock = vars(model).setdefault(_NAME, ModelLock())
    return lock


@contextmanager
def exclusive(model: Any) -> Iterator[None]:
    """Wait until no other thread edits the model, and keep the others out.

    Args:
        model: The language model.
    """
    with model_lock(model).lock:
        yield


@contextmanager
def exact_edit(model: Any) -> Iterator[None]:
    """Edit alone, in eval mode and without autocast; says once a model that autocast was on.

    With its dropout on, a model learns an answer that it does not give in use.

    Args:
        model: The language model.
    """
    kind = str(getattr(getattr(model, "device", None), "type", "cpu"))
    with exclusive(model), in_eval_mode(model):
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            yield
            return
        lock = model_lock(model)
        if not lock.told:
            lock.told = True
            log.warning(
                "Autocast is switched off while an edit is solved, so that it has the bits of the "
                "model's own dtype; load the model in another dtype to solve in that"
            )
        with torch.autocast(kind, enabled=False):
            yield


def exactly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an editor's method so that it runs inside :func:`exact_edit`.

    Args:
        method: Method of an editor; it is called on a bound one.
    """

    @wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        with exact_edit(self.language_model):
            return method(self, *args, **kwargs)

    return guarded
