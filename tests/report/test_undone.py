"""What was undone after a run stands in its tables and on its page."""

from pathlib import Path

import pytest

from lightning_edit.cli.report import main as report
from lightning_edit.cli.undo import main as undo
from lightning_edit.edits.journal import Journal
from lightning_edit.report.cases import read_edits
from lightning_edit.report.page import write_page
from lightning_edit.report.payload import RunCases, columns
from lightning_edit.report.runs import as_runs
from lightning_edit.report.story import summarise_run, warnings
from lightning_edit.report.undone import undone_edits
from tests.report.runs import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four edits with a ledger of four commits; the loop itself undid one more."""
    folder = write_run(tmp_path / "run", 4, protocol="sequential")
    journal = Journal(folder / "ledger")
    journal.open(model="abc", editor="Toy")
    for name in ("edit:rolled-back", *(f"edit:{number}" for number in range(4))):
        request = {"id": name, "prompt": "It is", "target": "so"}
        journal.commit([name], f"{name}.safetensors", "00", [request])
        if name == "edit:rolled-back":
            journal.undo([1], by="run")
    return folder


def test_a_run_as_it_ended_has_nothing_undone(run: Path, tmp_path: Path) -> None:
    assert undone_edits(run).ids == ()
    assert undone_edits(run).sentence == ""
    assert undone_edits(tmp_path / "no-ledger").sentence == ""


def test_an_undo_is_named_everywhere_and_a_redo_takes_the_note_away(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert undo([str(run), "--ids", "edit:1", "edit:3"]) == 0
    note = "edit:1, edit:3 were undone after the run: 2 of 4 edits in force."
    edits = read_edits(run)
    assert [edit.undone for edit in edits] == [False, True, False, True]
    (read,) = as_runs(run)
    assert summarise_run(read, edits).lead.endswith(
        "one after the other; 2 of them were undone later."
    )
    assert warnings(read)[0].startswith(f"{read.label}: {note}")
    names = [name for _, name in columns([RunCases(read, edits)])["edits"]]
    assert names == ["edit:0", "edit:1 (undone)", "edit:2", "edit:3 (undone)"]
    page = write_page([run], run / "page.html").read_text(encoding="utf-8")
    assert note in page
    assert page.count("undone after the run</span>") == 2
    capsys.readouterr()
    assert report([str(run), "--no-html"]) == 0
    assert note in capsys.readouterr().out
    Journal(run / "ledger").redo([3, 5], by="user")
    assert undone_edits(run).sentence == ""
    assert "undone" not in summarise_run(read, read_edits(run)).lead


def test_an_edit_written_anew_is_in_force(run: Path) -> None:
    assert undo([str(run), "--ids", "edit:1"]) == 0
    request = {"id": "edit:1", "prompt": "It is", "target": "so"}
    Journal(run / "ledger").commit(["edit:1"], "again.safetensors", "00", [request])
    assert undone_edits(run).ids == ()


def test_a_damaged_journal_is_said_not_hidden(run: Path) -> None:
    path = run / "ledger" / "journal.jsonl"
    path.write_text(path.read_text().replace('"It is"', '"It was"', 1))
    assert "is not known" in undone_edits(run).sentence
    assert "line 2" in undone_edits(run).sentence
    assert [edit.undone for edit in read_edits(run)] == [False] * 4


def test_one_edit_undone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", 1, protocol="sequential")
    journal = Journal(folder / "ledger")
    journal.open(model="abc", editor="Toy")
    journal.commit(["edit:0"], "1.safetensors", "00", [{"id": "edit:0"}])
    assert undo([str(folder), "--all"]) == 0
    (read,) = as_runs(folder)
    assert summarise_run(read, read_edits(folder)).lead.endswith("; it was undone later.")
