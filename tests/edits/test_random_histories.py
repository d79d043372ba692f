"""Whatever was committed, undone, redone and cut off by a kill: the model is the replay."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_edit.edits.journal import Journal
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import LedgerError
from lightning_edit.functional.visible import visible
from lightning_edit.models.weights import weights_hash
from tests.edits.test_ledger import delta, model_of

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["commit", "undo", "redo", "rollback", "kill", "cut line", "drop", "spoil"]
        ),
        st.integers(0, 5),
    ),
    max_size=14,
)


def apply(ledger: Ledger, name: str, number: int) -> None:
    """One operation; those that make no sense now are refused and change nothing."""
    ids = [f"e{number}"]
    if name == "commit":
        ledger.commit(delta(number), ())
    elif name == "undo":
        ledger.undo(ids)
    elif name == "redo":
        ledger.redo(ids)
    elif name == "rollback":
        ledger.rollback(number % 3)
    elif name == "drop":
        with ledger.staged(delta(number), ()):
            pass


def spoil(folder: Path, number: int) -> None:
    """Damage or remove one of the snapshots; nothing depends on them."""
    found = sorted((folder / "snapshots").glob("*.safetensors"))
    if found:
        path = found[number % len(found)]
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        if number % 2:
            path.unlink()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(OPERATIONS, st.sampled_from([0, 1, 2, 3]))
@example([("commit", n) for n in range(6)] + [("undo", 1), ("kill", 0), ("redo", 1)], 2)
@example([("commit", n) for n in range(5)] + [("spoil", 0), ("undo", 4), ("kill", 0)], 1)
def test_model_equals_replay(operations: list[tuple[str, int]], every: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_of()
        pristine = weights_hash(model)
        ledger = Ledger(model, directory=folder, snapshot_every=every)
        ledger.open()
        expected: list[str] = []
        for operation, number in operations:
            if operation in ("kill", "cut line"):
                if operation == "cut line":
                    with (folder / "journal.jsonl").open("ab") as file:
                        file.write(b'{"op": "commit", "seq"')
                (folder / "new.safetensors").write_bytes(b"half a delta")
                model = model_of()
                ledger = Ledger(model, directory=folder, snapshot_every=every)
                ledger.replay()
            elif operation == "spoil":
                spoil(folder, number)
            else:
                before = weights_hash(model)
                try:
                    apply(ledger, operation, number)
                except LedgerError:
                    assert weights_hash(model) == before
            # One more reader of the disk, and one who only knows what is in force.
            expected = list(ledger.request_ids)
            assert [i for e in Journal(folder).active() for i in e.ids] == expected
        replayed, scratch = model_of(), model_of()
        Ledger(replayed, directory=folder).replay()
        assert weights_hash(replayed) == weights_hash(model)
        shutil.rmtree(folder / "snapshots", ignore_errors=True)
        Ledger(scratch, directory=folder).replay()
        assert weights_hash(scratch) == weights_hash(model)
        straight = model_of()
        straight_ledger = Ledger(straight)
        for one in expected:
            straight_ledger.commit(delta(int(one[1:])), ())
        assert weights_hash(straight) == weights_hash(model)
        ledger.undo(expected)
        assert weights_hash(model) == pristine


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_changed_byte_of_a_journal_is_noticed(at: int, value: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        journal = Journal(Path(name))
        journal.open(model="abc")
        for number in range(4):
            journal.commit([f"e{number}"], f"{number}", "0", [{"id": f"e{number}"}])
        content = bytearray(journal.path.read_bytes())
        at %= len(content)
        same = content[at] == value
        content[at] = value
        journal.path.write_bytes(content)
        try:
            found = Journal(Path(name))
        except LedgerError:
            assert not same
            return
        # Only a last line that looks cut off may be lost.
        assert len(found) == len(journal) or at == len(content) - 1
        assert same or len(found) < len(journal) or found.head == journal.head


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text())
def test_visible_text_holds_no_control(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    assert not any(c < " " and c not in "\n\t" for c in shown)
    assert "\x1b" not in shown
