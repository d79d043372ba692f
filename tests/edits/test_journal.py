"""The journal survives kills, full disks and curious hands, or says what is wrong."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_edit.edits.entries import require_file, select
from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import LedgerError, LedgerWriteError
from tests.disks import file_size_limit, refuse_fsync


def filled(folder: Path, commits: int = 3) -> Journal:
    journal = Journal(folder)
    journal.open(model="abc", editor="Toy")
    for number in range(1, commits + 1):
        journal.commit([f"e{number}"], f"{number}.safetensors", "00", [{"id": f"e{number}"}])
    return journal


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    journal.undo([2], by="user")
    again = Journal(tmp_path)
    assert [entry.ids for entry in again.active()] == [("e1",), ("e3",)]
    assert [entry.seq for entry in again.commits()] == [1, 2, 3]
    assert again.head == journal.head
    assert len(again) == 5
    assert again.next_seq == 4


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_last_line_cut_off_by_a_kill_is_dropped_and_overwritten(
    tmp_path: Path, keep: int
) -> None:
    path = filled(tmp_path, commits=2).path
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -len(last)] + last[:keep])
    journal = Journal(tmp_path)
    assert [entry.seq for entry in journal.active()] == [1]
    journal.commit(["e2"], "2.safetensors", "00", [{"id": "e2"}])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"[1]", b"7", b"{}", b"\xff\xfe", b"", None])
def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path, damage: bytes | None) -> None:
    path = filled(tmp_path).path
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b'"e1"', b'"e9"') if damage is None else damage
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(LedgerError, match=r"journal\.jsonl, line 2: .* restore the file"):
        Journal(tmp_path)


def test_a_line_taken_out_or_moved_is_an_error(tmp_path: Path) -> None:
    path = filled(tmp_path).path
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], *lines[2:]]))
    with pytest.raises(LedgerError, match="line 2"):
        Journal(tmp_path)


def test_a_journal_belongs_to_one_model(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(LedgerError, match=r"model is 'other'.*opened with 'abc'"):
        Journal(tmp_path).open(model="other", editor="Toy")


@pytest.mark.parametrize("room", [0, 30])
def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, room: int) -> None:
    journal = filled(tmp_path)
    whole = journal.path.read_bytes()
    with (
        file_size_limit(len(whole) + room),
        pytest.raises(LedgerWriteError, match=r"no space is left.*free space, then resume"),
    ):
        journal.undo([1])
    assert journal.path.read_bytes() == whole
    assert [entry.seq for entry in journal.active()] == [1, 2, 3]
    journal.undo([1])
    assert [entry.seq for entry in Journal(tmp_path).active()] == [2, 3]


def test_a_line_that_could_not_be_made_durable_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = filled(tmp_path)
    with monkeypatch.context() as patch:
        refuse_fsync(patch, "journal.jsonl")
        with pytest.raises(LedgerWriteError, match="no space is left"):
            journal.undo([1])
    assert len(Journal(tmp_path)) == len(journal) == 4


def test_an_undo_by_hand_and_its_redo_leave_nothing_to_lose(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    journal.undo([2], by="user")
    with pytest.raises(LedgerError, match="undone by hand"):
        journal.truncate(3)
    journal.redo([2], by="user")
    journal.truncate(3)
    assert [entry.seq for entry in Journal(tmp_path).active()] == [1, 2]
    # What the run itself undid before the checkpoint, and a user put back after it.
    journal.undo([1])
    journal.redo([1], by="user")
    with pytest.raises(LedgerError, match="undone by hand"):
        journal.truncate(4)


def test_going_back_forgets_later_lines_but_never_an_undo_by_hand(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    journal.truncate(2)
    assert Journal(tmp_path).next_seq == journal.next_seq == 2
    journal.undo([1], by="user")
    with pytest.raises(LedgerError, match="undone by hand"):
        journal.truncate(2)
    with pytest.raises(LedgerError, match="has 3 lines"):
        journal.truncate(9)


def test_a_batch_is_undone_as_a_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.commit(["a", "b"], "1.safetensors", "00", [])
    assert [entry.seq for entry in select(journal.active(), ["b", "a"])] == [1]
    with pytest.raises(LedgerError, match="a was solved together with b; undo the whole batch"):
        select(journal.active(), ["a"])
    with pytest.raises(LedgerError, match="no edit in force is called 'c'; in force: a, b"):
        select(journal.active(), ["c"])


def test_any_text_survives(tmp_path: Path) -> None:
    request = {"id": "ü\u2028\n", "prompt": 'a "quoted"\tprompt\r\n'}
    Journal(tmp_path).commit([request["id"]], "1.safetensors", "00", [request])
    assert dict(Journal(tmp_path).active()[0].requests[0]) == request
    assert len((tmp_path / "journal.jsonl").read_bytes().split(b"\n")) == 2


def test_it_loads_no_torch() -> None:
    modules = "sys, lightning_edit.edits.journal, lightning_edit.cli.undo"
    code = f"import {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_lines_are_plain_json(tmp_path: Path) -> None:
    lines = filled(tmp_path).path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["op"] for line in lines] == ["open", "commit", "commit", "commit"]


def test_a_second_writer_is_noticed(tmp_path: Path) -> None:
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.open(model="hash")
    with pytest.raises(LedgerError, match="another process"):
        second.open(model="hash")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "", "..", "a/b", "a\0b", "link"])
def test_a_journal_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    ledger = tmp_path / "ledger"
    journal = Journal(ledger)
    journal.open(model="abc")
    (tmp_path / "outside").write_bytes(b"secret")
    (ledger / "link").symlink_to(tmp_path / "outside")
    entry = journal.commit(["a"], name, hashlib.sha256(b"secret").hexdigest(), [])
    with pytest.raises(LedgerError, match="not a file in that folder; nothing was read"):
        require_file(ledger, entry)


def test_a_pipe_in_place_of_a_delta_is_not_waited_for(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open(model="abc")
    os.mkfifo(tmp_path / "one")
    with pytest.raises(LedgerError, match="one is missing"):
        require_file(tmp_path, journal.commit(["a"], "one", "0", []))
