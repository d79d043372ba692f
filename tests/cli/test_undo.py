"""``lightning-edit undo`` changes the journal, and says what stands."""

import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_edit.cli.redo import main as redo
from lightning_edit.cli.undo import main
from lightning_edit.edits.journal import Journal
from lightning_edit.storage.run_lock import run_lock
from tests.disks import file_size_limit


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with four commits; the third holds two edits."""
    journal = Journal(tmp_path / "ledger")
    journal.open(model="abc", editor="Toy")
    for number, ids in enumerate([["a"], ["b"], ["c1", "c2"], ["d"]], start=1):
        requests = [
            {"id": name, "prompt": f"The [bold] of {name} is", "target": f"T-{name}"}
            for name in ids
        ]
        file = f"{number:06d}.safetensors"
        (tmp_path / "ledger" / file).write_bytes(b"")
        journal.commit(ids, file, hashlib.sha256(b"").hexdigest(), requests)
    return tmp_path


def in_force(run: Path) -> list[str]:
    return [request for entry in Journal(run / "ledger").active() for request in entry.ids]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--ids", "a", "d"], ["b", "c1", "c2"]),
        (["--ids", "c2", "c1"], ["a", "b", "d"]),
        (["--last", "2"], ["a", "b"]),
        (["--all"], []),
        (["--list"], ["a", "b", "c1", "c2", "d"]),
    ],
)
def test_what_stands_afterwards(
    run: Path, options: list[str], left: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), *options]) == 0
    assert in_force(run) == left
    out = capsys.readouterr().out
    if options == ["--list"]:
        assert "5 edits in force" in out
    else:
        assert f"{len(left)} of 5 edits in force" in out


def test_it_is_marked_as_done_by_hand(run: Path) -> None:
    assert main([str(run), "--last", "1"]) == 0
    assert '"by": "user"' in (run / "ledger" / "journal.jsonl").read_text().splitlines()[-1]


def test_the_list_shows_prompt_and_target_as_they_are(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--ids", "b", "--list"]) == 0
    out = capsys.readouterr().out
    assert "The [bold] of c1 is" in out
    assert "→ T-c1" in out
    assert "T-b" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ids", "c1"], "c1 was solved together with c2; undo the whole batch"),
        (["--ids", "zzz"], "no edit in force is called 'zzz'; in force: a, b, c1, c2, d"),
        (["--last", "9"], "cannot undo the last 9 commits: 4 are in force"),
        (["--last", "0"], "cannot undo the last 0 commits"),
    ],
)
def test_an_error_changes_nothing(
    run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "ledger" / "journal.jsonl").read_bytes()
    assert main([str(run), *options]) == 2
    assert message in capsys.readouterr().err
    assert (run / "ledger" / "journal.jsonl").read_bytes() == before


def test_all_twice_and_a_folder_without_a_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--all"]) == 0
    assert main([str(run), "--all"]) == 2
    assert "nothing to undo" in capsys.readouterr().err
    assert main([str(run / "nowhere"), "--all"]) == 2
    assert "holds no edits" in capsys.readouterr().err
    assert not (run / "nowhere").exists()


def test_nothing_said_is_a_usage_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(run)])
    assert caught.value.code == 2
    assert "--ids ID …, --last N or --all" in capsys.readouterr().err


def test_a_full_disk_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with file_size_limit(100):
        assert main([str(run), "--all"]) == 2
    assert "no space is left" in capsys.readouterr().err
    assert in_force(run) == ["a", "b", "c1", "c2", "d"]


def test_it_answers_in_under_a_second(run: Path) -> None:
    code = (
        "import sys; from lightning_edit.cli.undo import main; code = main(sys.argv[1:]);"
        "print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), "--last", "1", "--list"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert time.monotonic() - start < 5  # a loaded machine; alone it takes 0.2 s
    assert re.search(r"^\[\]$", done.stdout, re.MULTILINE)


def test_a_redo_puts_back_what_was_undone_by_hand(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "ledger" / "journal.jsonl").read_bytes()
    assert redo([str(run), "--all"]) == 2
    assert "no edit was undone by `lightning-edit undo`" in capsys.readouterr().err
    assert (run / "ledger" / "journal.jsonl").read_bytes() == before
    assert main([str(run), "--ids", "b", "c1", "c2"]) == 0
    assert redo([str(run), "--list"]) == 0
    assert "3 edits undone" in capsys.readouterr().out
    assert redo([str(run), "--ids", "c1"]) == 2
    assert "c1 was solved together with c2" in capsys.readouterr().err
    assert redo([str(run), "--ids", "b"]) == 0
    assert "redid b; 3 in force" in capsys.readouterr().out
    assert in_force(run) == ["a", "b", "d"]
    assert redo([str(run), "--all"]) == 0
    assert in_force(run) == ["a", "b", "c1", "c2", "d"]
    assert redo([str(run), "--ids", "zzz"]) == 2
    assert "no edit undone is called 'zzz'" in capsys.readouterr().err


def test_a_redo_without_its_delta_changes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--ids", "b"]) == 0
    (file,) = [entry.file for entry in Journal(run / "ledger").undone()]
    (run / "ledger" / file).unlink()
    before = (run / "ledger" / "journal.jsonl").read_bytes()
    assert redo([str(run), "--ids", "b"]) == 2
    assert "is missing; restore the run folder" in capsys.readouterr().err
    assert (run / "ledger" / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("verb", [main, redo])
def test_a_run_in_progress_is_left_alone(
    run: Path, verb: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--ids", "b"]) == 0
    before = (run / "ledger" / "journal.jsonl").read_bytes()
    with run_lock(run):
        assert verb([str(run), "--all"]) == 2
        assert "is being written by process" in capsys.readouterr().err
        assert verb([str(run), "--list"]) == 0
    assert (run / "ledger" / "journal.jsonl").read_bytes() == before
    assert verb([str(run), "--all"]) == 0


@pytest.mark.parametrize("verb", [main, redo])
def test_a_missing_run_is_named_before_the_edits_are_asked_for(
    tmp_path: Path, verb: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb([str(tmp_path / "none")]) == 2
    assert "none holds no edits" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_redo_wants_the_file_as_it_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--ids", "b"]) == 0
    (run / "ledger" / "000002.safetensors").write_bytes(b"other")
    assert redo([str(run), "--ids", "b"]) == 2
    assert "SHA-256 differs" in capsys.readouterr().err
    assert "b" not in in_force(run)
