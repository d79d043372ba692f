"""Atomic folder writes: an export folder is complete or absent."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from safetensors import SafetensorError

from lightning_edit.exceptions import ExportError

#: Every export contains this file; ``--overwrite`` only replaces folders that have it.
EDITS = "edits.jsonl"


@contextmanager
def atomic_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder atomically: yield a temporary folder that replaces ``out`` on success.

    Args:
        out: Final path of the folder.
        overwrite: Whether to replace an earlier export at this path.

    Raises:
        ExportError: If something else is at ``out``, or the write fails; nothing is left behind.
    """
    _check_target(out, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise _write_error(error, out) from error
    try:
        yield part
        part.chmod(0o755)  # mkdtemp creates it with mode 0700
        _replace_folder(part, out)
    except (OSError, SafetensorError) as error:
        # Library errors that are also OSErrors (a model load error) already explain the cause.
        raise (error if _is_library_error(error) else _write_error(error, out)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def human_size(folder: Path) -> str:
    """Return the size of a folder as readable text, such as ``12.3 KB``."""
    size = float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file; give another folder with --out")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise ExportError(f"{out} exists; add --overwrite to replace it, or give another --out")
    if not (out / EDITS).is_file():
        raise ExportError(
            f"{out} was not made by `lightning-edit export` (it has no {EDITS}), so it is not "
            "replaced; give another folder with --out"
        )


def _replace_folder(part: Path, out: Path) -> None:
    old = part.with_name(part.name + ".old")
    if out.exists():
        out.rename(old)
    try:
        part.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_library_error(error: Exception) -> bool:
    return type(error).__module__.startswith("lightning_edit.")


def _write_error(error: Exception, out: Path) -> ExportError:
    text = str(error).strip().partition("\n")[0]
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # safetensors gives the code in its text only; the second form is that of its version 0.5.
    named = any(f"os error {code})" in text or f"code: {code}," in text for code in codes)
    full = getattr(error, "errno", None) in codes or named
    reason = "no space is left" if full else text
    remedy = "free space, or give a folder on another disk with --out" if full else "check --out"
    return ExportError(f"could not write {out}: {reason}. Nothing was left there; {remedy}")
