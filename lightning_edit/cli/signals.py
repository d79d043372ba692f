"""Exit status of a program that a signal ends: 130 (Ctrl-C) or 143 (SIGTERM), no traceback."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Shells report a program that signal N ended as this plus N.
SIGNAL_STATUS = 128

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Turn SIGINT and SIGTERM into ``KeyboardInterrupt`` inside the block, and note which came.

    While a module is imported the process ends at once: nothing has been written then, and an
    interrupted import ends in other errors.

    Yields:
        The signals received so far.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if _importing(frame):
            sys.stderr.write("Interrupted while starting; nothing was changed.\n")
            sys.stderr.flush()
            os._exit(SIGNAL_STATUS + number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # A shell lets what it starts in the background ignore Ctrl-C, and that stays so.
    taken = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
