"""Snapshots of a ledger: float64 totals after some commits, so that a replay can begin there.

A file of a snapshot holds the totals, the numbers of the commits that they sum up, and length and
hash of the journal by then. Sums in a fixed order have the same bits whether they begin at zero or
at a snapshot; so a snapshot saves time and decides nothing, and the delta files stay.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_edit.edits.entries import Entry
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.runs import Runs, clip, kept, runs_of
from lightning_edit.exceptions import LedgerError
from lightning_edit.functional.visible import visible
from lightning_edit.storage.atomic import atomic_path
from lightning_edit.storage.content_hash import content_hash
from lightning_edit.storage.safetensors_files import sort_header

log = logging.getLogger(__name__)

#: Folder of the snapshots, inside that of the journal.
FOLDER = "snapshots"
_FORMAT = "lightning-edit-snapshot/1"


@dataclass(frozen=True)
class Snapshot:
    """Totals of the first commits of a list.

    Args:
        count: How many commits.
        last: Number of the last of them.
        totals: Their sum, in float64, by parameter name.
    """

    count: int
    last: int
    totals: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Header:
    lines: int
    head: str
    runs: Runs
    devices: Mapping[str, str]
    sha256: str


class Snapshots:
    """Snapshots of one journal.

    Few are kept: one of every age, 1, 2, 4, 8 … thousand commits, so that their number grows with
    the logarithm of the stream.

    Args:
        journal: The journal.
        every: Commits between two snapshots.
    """

    def __init__(self, journal: Journal, every: int) -> None:
        self._journal = journal
        self._folder = journal.directory / FOLDER
        self._every = every
        self._told: set[Path] = set()

    @property
    def writable(self) -> bool:
        """Whether the folder of the journal can be written."""
        return self._journal.ranks.same(os.access(self._journal.directory, os.W_OK))

    def find(self, active: Sequence[Entry], device_of: Callable[[str], str]) -> Snapshot | None:
        """Find the newest snapshot that sums up the first of some commits.

        A snapshot of commits of which one is not among them (it was undone) is passed over. One
        that is damaged, or of another journal or device, is passed over with a warning.

        Args:
            active: Commits in force, in order.
            device_of: Type of the device of a weight, on which sums are formed.

        Returns:
            The snapshot, verified; ``None`` if the commits must be replayed from the first.
        """
        runs = runs_of(one.seq for one in active)
        for path in reversed(self._files()):
            try:
                header = self._header(path)
                if not header.runs or header.runs != clip(runs, header.runs[-1][1]):
                    continue
                if wrong := {n for n, d in header.devices.items() if device_of(n) != d}:
                    here, there = device_of(min(wrong)), header.devices[min(wrong)]
                    raise LedgerError(
                        f"was written on the device {there}, but the model is on {here}, where "
                        "sums round differently"
                    )
                totals = _read_totals(path)
                if _hash(header, totals) != header.sha256:
                    raise LedgerError("is damaged (SHA-256 of its content differs)")
            except LedgerError as error:
                self._tell(path, error)
                continue
            count = sum(last - first + 1 for first, last in header.runs)
            return Snapshot(count, header.runs[-1][1], totals)
        return None

    def write(self, entries: Sequence[Entry], totals: Mapping[str, Tensor]) -> None:
        """Write a snapshot; if the disk refuses, a warning says so and nothing is lost.

        Args:
            entries: The commits, in order.
            totals: Their sum, in float64, by parameter name.
        """
        self._journal.ranks.first(lambda: self._write(entries, totals))

    def _write(self, entries: Sequence[Entry], totals: Mapping[str, Tensor]) -> None:
        plain = {name: totals[name].detach().cpu().contiguous() for name in sorted(totals)}
        runs = runs_of(entry.seq for entry in entries)
        devices = {name: totals[name].device.type for name in sorted(totals)}
        header = _Header(len(self._journal), self._journal.head, runs, devices, "")
        path = self._folder / f"{runs[-1][1]:06d}.safetensors"
        stored = {
            "format": _FORMAT,
            "lines": json.dumps(header.lines),
            "head": header.head,
            "commits": json.dumps(runs),
            "devices": json.dumps(devices),
            "sha256": _hash(header, plain),
        }
        try:
            self._folder.mkdir(exist_ok=True)
            with atomic_path(path, several_writers=True) as part:
                save_file(plain, part, metadata=stored)
                sort_header(part)
        except (OSError, SafetensorError) as error:
            log.warning(
                "could not write the snapshot %s: %s. Every edit is safe; without it a replay and "
                "an undo take longer",
                visible(str(path)),
                visible(str(error)),
            )

    def tidy(self, entries: Sequence[Entry]) -> None:
        """Remove snapshots that commits in force no longer match, and those too close together.

        Args:
            entries: Commits in force, in order.
        """
        self._journal.ranks.first(lambda: self._tidy(entries))

    def _tidy(self, entries: Sequence[Entry]) -> None:
        runs = runs_of(entry.seq for entry in entries)
        usable: dict[int, Path] = {}
        gone = list(self._folder.glob("*.part"))
        for path in self._files():
            try:
                header = self._header(path)
            except LedgerError as error:
                self._tell(path, error)
                continue
            if header.runs and header.runs == clip(runs, header.runs[-1][1]):
                usable[header.runs[-1][1]] = path
            else:
                gone.append(path)
        stay = kept(usable, self._every)
        gone += [path for last, path in usable.items() if last not in stay]
        for path in gone:
            with suppress(OSError):  # of a folder that cannot be written
                path.unlink(missing_ok=True)

    def forget_after(self, lines: int) -> None:
        """Remove the snapshots that were written after some lines of the journal.

        Args:
            lines: Number of lines that will stay.
        """
        self._journal.ranks.first(lambda: self._forget_after(lines))

    def _forget_after(self, lines: int) -> None:
        for path in self._files():
            try:
                late = self._header(path).lines > lines
            except LedgerError as error:
                self._tell(path, error)
                continue
            if late:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Return the files by the number of their last commit; there are few."""
        found = [one for one in self._folder.glob("*.safetensors") if one.stem.isdecimal()]
        return sorted(found, key=lambda one: int(one.stem))

    def _header(self, path: Path) -> _Header:
        """Read what a snapshot says of itself, and check that it is of this journal."""
        if path.is_symlink() or not path.is_file():
            raise LedgerError("is no plain file")
        try:
            with safe_open(str(path), framework="pt") as file:
                stored = file.metadata() or {}
            if stored.get("format") != _FORMAT:
                raise LedgerError(f"has the format {stored.get('format')!r}, expected {_FORMAT!r}")
            header = _Header(
                int(stored["lines"]),
                stored["head"],
                tuple((int(first), int(last)) for first, last in json.loads(stored["commits"])),
                dict(json.loads(stored["devices"])),
                stored["sha256"],
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, LedgerError):
                raise
            raise LedgerError(f"cannot be read ({error})") from error
        if self._journal.head_at(header.lines) != header.head:
            raise LedgerError(
                f"belongs to another journal: the hash of its first {header.lines} lines differs"
            )
        return header

    def _tell(self, path: Path, error: LedgerError) -> None:
        if path not in self._told:
            self._told.add(path)
            log.warning(
                "the snapshot %s is not used: it %s. Edits are replayed from an earlier one, or "
                "from the first edit, with the same result; delete the file to silence this",
                visible(str(path)),
                visible(str(error)),
            )


def _read_totals(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise LedgerError(f"cannot be read ({error})") from error


def _hash(header: _Header, totals: Mapping[str, Tensor]) -> str:
    """Return the hash of everything that a snapshot holds."""
    runs = [list(run) for run in header.runs]
    return content_hash([header.lines, header.head, runs, header.devices, totals])
