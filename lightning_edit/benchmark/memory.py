"""Peak memory that the edits of a benchmark cell add, measured in a process of its own.

Run as ``python -m lightning_edit.benchmark.memory CELL.json``: it prints JSON. One process for
each cell, since memory that earlier cells returned to the allocator would hide what a cell takes.
"""

import ctypes
import gc
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import LightningEditError

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def measure_in_own_process(specification: Path) -> dict[str, Any]:
    """Measure a cell's peak memory in a fresh Python process.

    Args:
        specification: The cell's ``cell.json``.

    Returns:
        What :func:`measure` returns.

    Raises:
        LightningEditError: If the process fails.
    """
    command = [sys.executable, "-m", "lightning_edit.benchmark.memory", str(specification)]
    # The package of this process, also where the current folder holds another one.
    own = str(Path(__file__).parents[2])
    places = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": places, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LightningEditError(f"peak memory of {specification.parent.name}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the peak memory that finding the edits of a cell adds to the process.

    The first request is edited once before, so that what is loaded once does not count; no edit is
    written.

    Args:
        spec: Specification of the cell.

    Returns:
        ``peak_bytes``: highest memory while the edits are found, less that before the first;
        ``None`` on a system that does not tell (other than Linux or a CUDA device). ``edits``.
    """
    from lightning_edit.benchmark.run import bound_editor  # not where only a process is started
    from lightning_edit.edits.encoding import encode_batch

    editor, data = bound_editor(spec, spec["seed"])
    requests = data.edit_requests()
    editor.on_stream(data)
    whole = spec["protocol"]["protocol"] == "batch"
    groups = [requests] if whole else [[request] for request in requests]
    batches = [encode_batch(editor.prompts, group, spec["seed"]) for group in groups]
    editor.edit(encode_batch(editor.prompts, requests[:1], spec["seed"]))
    on_gpu = editor.language_model.device.type == "cuda"
    # The deltas live until the last one is found, as in a run.
    added = peak_added_by(lambda: [editor.edit(batch) for batch in batches], on_gpu)
    return {"peak_bytes": added, "edits": len(requests)}


def peak_added_by(work: Callable[[], object], on_gpu: bool = False) -> int | None:
    """Return the highest memory while something runs, less that before it, in bytes.

    Args:
        work: What is run; what it returns is kept until memory is read.
        on_gpu: Whether memory of the CUDA device is read, in place of the process's resident size.

    Returns:
        The bytes; ``None`` where the system does not tell.
    """
    gc.collect()
    peak: Callable[[], int] = _highest
    if on_gpu:
        import torch  # not for the process that only starts this one

        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    elif _CLEAR.exists():
        _return_freed_pages()
        _CLEAR.write_text("5")  # the highest resident size begins again at the present one
        before = _resident("VmRSS")
    else:
        work()
        return None
    kept = work()
    added = max(0, peak() - before)
    del kept
    return added


def _highest() -> int:
    return _resident("VmHWM")


def _resident(name: str) -> int:
    """Return a size of this process in bytes, from Linux."""
    line = next(one for one in _STATUS.read_text().splitlines() if one.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _return_freed_pages() -> None:
    """Give what glibc's allocator keeps back to the system; other C libraries keep little."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def main(argv: list[str]) -> int:
    """Print the peak memory of a cell as JSON.

    Args:
        argv: Path of a ``cell.json``.
    """
    from lightning_edit.benchmark.quiet import quiet

    quiet()
    logging.disable(logging.WARNING)
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps(measure(spec)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
