"""A snapshot saves time and decides nothing: replay, undo and redo have the bits without it."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_weights import EditedWeights
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.snapshots import Snapshots
from lightning_edit.exceptions import LedgerError, LedgerWriteError
from lightning_edit.models.weights import weights_hash
from tests.disks import file_size_limit, refuse_fsync
from tests.edits.test_ledger import DTYPES, History, edited, model_of

pytestmark = pytest.mark.bits

EVERY = 4


def ledger_of(
    folder: Path | None, dtype: torch.dtype = torch.float32, every: int = EVERY
) -> Ledger:
    return Ledger(model_of(dtype), directory=folder, snapshot_every=every)


def replayed(folder: Path, dtype: torch.dtype = torch.float32) -> Ledger:
    ledger = Ledger(model_of(dtype), directory=folder, snapshot_every=0)
    ledger.replay()
    return ledger


def from_scratch(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[str, dict[str, Tensor]]:
    """Replay every delta, in a copy without snapshots."""
    copy = folder.with_name(folder.name + "-scratch")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("snapshots"))
    ledger = replayed(copy, dtype)
    shutil.rmtree(copy)
    return state(ledger)


def state(ledger: Ledger) -> tuple[str, dict[str, Tensor]]:
    return weights_hash(ledger.model), {name: one.total for name, one in ledger.touched.items()}


def assert_same(left: tuple[str, dict[str, Tensor]], right: tuple[str, dict[str, Tensor]]) -> None:
    assert left[0] == right[0]
    assert left[1].keys() == right[1].keys()
    for name, total in left[1].items():
        assert total.numpy().tobytes() == right[1][name].numpy().tobytes()


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """List the delta files that are read inside the block."""
    found: list[str] = []
    load = Delta.load

    def noted(path: Path, *args: object) -> Delta:
        found.append(path.stem.lstrip("0"))
        return load(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Delta, "load", noted)
        yield found


def snapshots(folder: Path) -> list[int]:
    return sorted(int(one.stem) for one in (folder / "snapshots").glob("*.safetensors"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_replay_from_a_snapshot_has_the_bits_of_a_whole_one(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ledger"
    ledger = edited(ledger_of(folder, dtype), range(11))
    assert snapshots(folder) == [4, 8]
    with reads(monkeypatch) as read:
        again = replayed(folder, dtype)
    assert read == ["9", "10", "11"]
    assert_same(state(again), state(ledger))
    assert_same(state(again), from_scratch(folder, dtype))
    assert again.request_ids == ledger.request_ids
    # What comes after has the same bits too.
    edited(again, [11, 12]).undo(["e5"])
    straight = edited(ledger_of(None, dtype), [n for n in range(13) if n != 5])
    assert_same(state(again), state(straight))


def test_an_undo_reads_only_what_came_after_the_snapshot_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ledger"
    edited(ledger_of(folder), range(22))
    ledger = ledger_of(folder)
    ledger.replay()
    before = state(ledger)
    assert snapshots(folder) == [4, 12, 16, 20]
    with reads(monkeypatch) as read:
        ledger.undo(["e17"])  # the 18th commit
    assert {"17", "18"} <= set(read) <= {str(n) for n in range(17, 23)}
    assert_same(state(ledger), from_scratch(folder))
    with reads(monkeypatch) as read:
        ledger.redo(["e17"])
    assert set(read) <= {str(n) for n in range(17, 23)}
    assert_same(state(ledger), before)
    ledger.undo(["e9"])
    assert_same(state(ledger), from_scratch(folder))
    # A long replay has left snapshots of what is in force now: 1, 2, 4 intervals before the end.
    assert snapshots(folder) == [4, 14, 18]
    with reads(monkeypatch) as read:
        again = replayed(folder)
    assert len(read) <= EVERY
    assert_same(state(again), state(ledger))
    ledger.redo(["e9"])
    assert_same(state(ledger), before)
    assert_same(state(replayed(folder)), before)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_header(path: Path) -> None:
    content = path.read_bytes()
    assert b"[[1, 8]]" in content
    path.write_bytes(content.replace(b"[[1, 8]]", b"[[1, 7]]"))


def a_delta(path: Path) -> None:
    path.write_bytes((path.parents[1] / "000001.safetensors").read_bytes())


def a_link(path: Path) -> None:
    moved = path.with_name("elsewhere")
    path.rename(moved)
    path.symlink_to(moved)


def foreign(path: Path) -> None:
    other = path.parents[2] / "other"
    if not other.exists():
        ledger = Ledger(model_of(), directory=other, snapshot_every=4)
        edited(ledger, [9, *range(7)])
    path.write_bytes((other / "snapshots" / path.name).read_bytes())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage, "is damaged"), (cut, "cannot be read"), (empty, "cannot be read"),
        (a_delta, "has the format 'lightning-edit-delta/1'"), (a_link, "is no plain file"),
        (foreign, "belongs to another journal"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_snapshot_that_cannot_be_trusted_is_named_and_passed_over(
    change: object, words: str, all_of_them: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "ledger"
    ledger = edited(ledger_of(folder), range(10))
    for path in sorted((folder / "snapshots").iterdir())[0 if all_of_them else 1 :]:
        change(path)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING), reads(monkeypatch) as read:
        again = replayed(folder)
    assert read == [str(n) for n in range(1 if all_of_them else 5, 11)]
    assert f"{folder / 'snapshots' / '000008.safetensors'} is not used: it {words}" in caplog.text
    assert ("000004.safetensors is not used" in caplog.text) == all_of_them
    assert "with the same result" in caplog.text
    assert_same(state(again), state(ledger))


def test_other_commit_numbers_in_a_snapshot_are_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = edited(ledger_of(tmp_path), range(9))
    other_header(tmp_path / "snapshots" / "000008.safetensors")
    assert_same(state(replayed(tmp_path)), state(ledger))
    assert "000008.safetensors is not used: it is damaged" in caplog.text


def test_sums_of_another_device_are_not_taken_for_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = edited(ledger_of(tmp_path), range(9))
    journal = Journal(tmp_path)
    assert Snapshots(journal, EVERY).find(journal.active(), lambda _: "cpu") is not None
    assert Snapshots(journal, EVERY).find(journal.active(), lambda _: "cuda") is None
    assert "was written on the device cpu, but the model is on cuda" in caplog.text
    assert_same(state(replayed(tmp_path)), state(ledger))


@pytest.mark.parametrize("what", ["fsync", "size", "folder"])
def test_a_snapshot_that_cannot_be_written_costs_no_commit(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = edited(ledger_of(tmp_path), range(3))
    if what == "folder":
        (tmp_path / "snapshots").write_bytes(b"in the way")
        edited(ledger, [3])
    elif what == "fsync":
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if "snapshots" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                raise OSError(28, "No space left on device")
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            edited(ledger, [3])
    else:
        # A delta fits, three totals do not.
        with file_size_limit(20_000):
            edited(ledger, [3])
    assert "could not write the snapshot" in caplog.text
    assert "Every edit is safe" in caplog.text
    if what != "folder":
        assert list((tmp_path / "snapshots").iterdir()) == []
    assert ledger.request_ids == ("e0", "e1", "e2", "e3")
    assert_same(state(replayed(tmp_path)), state(ledger))
    # The next one is tried after as many commits.
    edited(ledger, range(4, 8))
    assert (what == "folder") or snapshots(tmp_path) == [8]


def test_a_kill_between_journal_and_snapshot_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    ledger = edited(ledger_of(tmp_path), range(7))
    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "write", killed)
        with pytest.raises(Killed):
            edited(ledger, [7])
    (tmp_path / "snapshots" / ".1-000008.safetensors.part").write_bytes(b"half a snapshot")
    again = ledger_of(tmp_path)
    again.replay()
    assert again.request_ids == tuple(f"e{n}" for n in range(8))
    assert_same(state(again), state(edited(ledger_of(None), range(8))))
    edited(again, range(8, 12))
    assert snapshots(tmp_path) == [4, 12]
    assert not list((tmp_path / "snapshots").glob("*.part"))


def test_a_cut_journal_takes_its_later_snapshots_along(tmp_path: Path) -> None:
    edited(ledger_of(tmp_path), range(9))
    ledger = ledger_of(tmp_path)
    ledger.replay(lines=6)
    assert snapshots(tmp_path) == [4]
    # The stream goes on another way: nothing of the old one is taken for it.
    edited(ledger, [20, 21, 22])
    assert_same(state(replayed(tmp_path)), state(edited(ledger_of(None), [*range(6), 20, 21, 22])))


def test_what_covers_a_snapshot_is_not_read_but_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = edited(ledger_of(tmp_path), range(9))
    journal = Journal(tmp_path)
    with monkeypatch.context() as patch:
        hashed: list[str] = []
        real = Journal.require_files
        patch.setattr(
            Journal,
            "require_files",
            lambda self, entries: (hashed.extend(e.file for e in entries), real(self, entries)),
        )
        journal.check_truncation(9, None, ledger.sums.covered(9))
    assert hashed == ["000009.safetensors"]
    damage(tmp_path / "000002.safetensors")
    again = ledger_of(tmp_path)
    again.replay()
    assert_same(state(again), state(ledger))
    with pytest.raises(LedgerError, match=r"000002\.safetensors is not what the journal recorded"):
        again.undo(["e1"])
    assert_same(state(again), state(ledger))
    assert len(Journal(tmp_path)) == 9  # the undo was not written
    (tmp_path / "000002.safetensors").unlink()
    for check in (ledger_of(tmp_path).replay, lambda: journal.check_truncation(9, None, 8)):
        with pytest.raises(LedgerError, match=r"000002\.safetensors is missing"):
            check()


def test_an_undo_that_cannot_be_written_changes_nothing_beside_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = edited(ledger_of(tmp_path), range(14))
    before = state(ledger)
    with monkeypatch.context() as patch:
        refuse_fsync(patch, "journal.jsonl")
        with pytest.raises(LedgerWriteError, match="no space is left"):
            ledger.undo(["e1"])
    assert_same(state(ledger), before)
    assert_same(state(replayed(tmp_path)), before)
    ledger.undo(["e1"])
    assert_same(state(ledger), state(replayed(tmp_path)))


def test_nothing_of_an_editor_is_read_at_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(ledger_of(tmp_path), range(8))
    history = History()
    ledger = Ledger(model_of(), None, tmp_path)
    with reads(monkeypatch) as read:
        ledger.replay()
    assert read == []
    assert len(ledger.in_force) == 8
    assert [one.request_ids[0] for one in ledger.in_force] == [f"e{n}" for n in range(8)]
    told = Ledger(model_of(), history, tmp_path)
    told.replay()
    assert history.ids == [f"e{n}" for n in range(8)]


def test_requests_are_read_from_the_journal(tmp_path: Path) -> None:
    ledger = edited(ledger_of(tmp_path), range(5))
    entry = ledger.in_force.entries[3]
    assert entry.requests[0]["prompt"] == "The capital of land 3 is"
    again = ledger_of(tmp_path)
    again.replay(lines=4)
    assert [e.requests[0]["id"] for e in again.in_force.entries] == ["e0", "e1", "e2", "e3"]
    with pytest.raises(LedgerError, match="commit 5 is not where it was"):
        _ = ledger.in_force.entries[4].requests


def test_a_file_of_totals_is_plain_safetensors(tmp_path: Path) -> None:
    ledger = edited(ledger_of(tmp_path), range(5)).rollback() or ledger_of(tmp_path)
    ledger.replay()
    with safe_open(str(tmp_path / "snapshots" / "000004.safetensors"), framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in sorted(file.keys())}
        assert file.metadata()["commits"] == "[[1, 4]]"
    assert {value.dtype for value in stored.values()} == {torch.float64}
    assert_same((weights_hash(ledger.model), stored), state(ledger))
    assert EditedWeights(model_of()).touched == {}
