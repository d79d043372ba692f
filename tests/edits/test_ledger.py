"""Weights are W0 plus the deltas in force, whatever was done and undone, and whatever failed."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_edit.edits.delta import Delta, Dense, LowRank
from lightning_edit.edits.in_force import _CACHED, HistoryChange
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import LedgerError, LedgerWriteError
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest
from tests.disks import file_size_limit, refuse_fsync, small_disk
from tests.models.tiny import build_tiny

pytestmark = pytest.mark.bits

DTYPES = [torch.float32, torch.bfloat16]
WEIGHTS = [f"transformer.h.{block}.mlp.c_proj.weight" for block in range(3)]


def delta(number: int, scale: float = 0.1) -> Delta:
    """Two layers, low rank and dense, and a bias; neighbours share a layer."""
    torch.manual_seed(number)
    first, second = WEIGHTS[number % 3], WEIGHTS[(number + 1) % 3]
    return Delta(
        (f"e{number}",),
        {
            first: LowRank(scale * torch.randn(32, 2), torch.randn(2, 48)),
            second: Dense(scale * torch.randn(32, 48)),
            first.replace("weight", "bias"): Dense(scale * torch.randn(32)),
        },
    )


def request(number: int) -> EditRequest:
    return EditRequest(f"e{number}", f"The capital of land {number} is", f"city {number}")


def model_of(dtype: torch.dtype = torch.float32) -> nn.Module:
    return build_tiny("gpt2").to(dtype)


def edited(ledger: Ledger, numbers: range | list[int]) -> Ledger:
    for number in numbers:
        ledger.commit(delta(number), [request(number)])
    return ledger


@pytest.mark.parametrize("dtype", DTYPES)
def test_undoing_everything_gives_the_original_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    model = model_of(dtype)
    before = weights_hash(model)
    ledger = edited(Ledger(model, directory=tmp_path), range(9))
    assert weights_hash(model) != before
    for number in [4, 0, 8, 1, 2, 3, 5, 7, 6]:
        ledger.undo([f"e{number}"])
    assert weights_hash(model) == before
    assert ledger.update_norms() == {}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gone", [0, 3, 5])
def test_undoing_one_equals_never_having_made_it(dtype: torch.dtype, gone: int) -> None:
    once, never = model_of(dtype), model_of(dtype)
    edited(Ledger(once), range(6)).undo([f"e{gone}"])
    edited(Ledger(never), [number for number in range(6) if number != gone])
    assert weights_hash(once) == weights_hash(never)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_replay_gives_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    model, fresh = model_of(dtype), model_of(dtype)
    ledger = Ledger(model, directory=tmp_path)
    ledger.open(editor="Toy")
    edited(ledger, range(5)).undo(["e2"])
    ledger.rollback(1)
    again = Ledger(fresh, directory=tmp_path)
    again.open(editor="Toy")
    again.replay()
    assert again.request_ids == ledger.request_ids == ("e0", "e1", "e3")
    assert weights_hash(fresh) == weights_hash(model)


def test_the_effective_weight_is_the_sum_cast_once() -> None:
    model = model_of(torch.bfloat16)
    before = model.get_parameter(WEIGHTS[0]).detach().double()
    # One update is lost in bfloat16's rounding; a hundred of them are not.
    tiny = torch.full((32, 48), 1e-3) * before.mT.float()
    ledger = Ledger(model)
    for number in range(100):
        ledger.commit(Delta((f"e{number}",), {WEIGHTS[0]: Dense(tiny)}), [])
    expected = (before + 100 * tiny.double().mT).to(torch.bfloat16)
    assert torch.equal(model.get_parameter(WEIGHTS[0]), expected)


def test_an_edit_below_the_rounding_warns(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        Ledger(model).commit(Delta(("a",), {WEIGHTS[0]: Dense(torch.full((32, 48), 1e-30))}), [])
    assert "changed no parameter" in caplog.text


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "is not finite"), (1e30, r"does not fit into .*float16")]
)
def test_an_update_that_does_not_fit_changes_nothing(value: float, message: str) -> None:
    model = model_of(torch.float16)
    ledger = edited(Ledger(model), [0])
    before = weights_hash(model)
    bad = dict(delta(1).weights) | {WEIGHTS[0]: Dense(torch.full((32, 48), value))}
    with pytest.raises(LedgerError, match=message):
        ledger.commit(Delta(("bad",), bad), [])
    assert weights_hash(model) == before
    assert ledger.request_ids == ("e0",)


def test_a_request_is_in_force_once() -> None:
    ledger = edited(Ledger(model_of()), [0])
    with pytest.raises(LedgerError, match="already in force: e0"):
        edited(ledger, [0])
    ledger.undo(["e0"])
    edited(ledger, [0])
    with pytest.raises(LedgerError, match="cannot roll back 2 commits: 1 are in force"):
        ledger.rollback(2)


class History:
    """Records what an editor is told."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.kinds: list[str] = []

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        self.kinds.append(change.kind)
        self.ids = [name for one in in_force for name in one.request_ids]


def refused(ledger: Ledger, number: int) -> str:
    """Try a commit on a full disk; return the message."""
    with pytest.raises(LedgerWriteError) as caught:
        edited(ledger, [number])
    assert isinstance(caught.value, OSError)
    return str(caught.value)


@pytest.mark.parametrize("what", [".safetensors.part", "journal.jsonl"])
def test_a_full_disk_leaves_model_journal_and_history_intact(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, history = model_of(), History()
    ledger = edited(Ledger(model, history, tmp_path), [0, 1])
    before, journal = weights_hash(model), (tmp_path / "journal.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        refuse_fsync(patch, what)
        message = refused(ledger, 2)
    assert "no space is left" in message
    assert "To go on: free space, then resume the run." in message
    assert weights_hash(model) == before
    assert (tmp_path / "journal.jsonl").read_bytes() == journal
    assert ledger.request_ids == ("e0", "e1")
    assert history.ids == ["e0", "e1"]
    assert not list(tmp_path.glob("*.part"))
    straight = model_of()
    edited(Ledger(straight), range(4))
    edited(ledger, [2, 3])
    assert weights_hash(model) == weights_hash(straight)
    replayed = model_of()
    Ledger(replayed, directory=tmp_path).replay()
    assert weights_hash(replayed) == weights_hash(straight)


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_file_the_system_refuses_to_grow(tmp_path: Path, room: int) -> None:
    model = model_of()
    ledger = edited(Ledger(model, directory=tmp_path), [0])
    before, files = weights_hash(model), {p.name for p in tmp_path.iterdir()}
    with file_size_limit(room):
        assert "no space is left" in refused(ledger, 1)
    assert weights_hash(model) == before
    assert {p.name for p in tmp_path.iterdir()} == files
    assert len(Journal(tmp_path).active()) == 1


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        model = model_of()
        ledger = Ledger(model, directory=disk / "ledger")
        edited(ledger, range(4))
        before = weights_hash(model)
        with pytest.raises(OSError, match="No space left"):
            (disk / "filler").write_bytes(bytes(65536))
        assert "no space is left" in refused(ledger, 4)
        assert weights_hash(model) == before
        replayed = model_of()
        Ledger(replayed, directory=disk / "ledger").replay()
        assert weights_hash(replayed) == before
        (disk / "filler").unlink()
        edited(ledger, [4])
        assert len(Journal(disk / "ledger").active()) == 5


def test_an_undo_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    model = model_of()
    ledger = edited(Ledger(model, directory=tmp_path), [0, 1])
    before = weights_hash(model)
    with file_size_limit(10), pytest.raises(LedgerWriteError, match="Every earlier edit is safe"):
        ledger.undo(["e0"])
    assert weights_hash(model) == before
    assert ledger.request_ids == ("e0", "e1")


@pytest.mark.parametrize("missing", [True, False])
def test_a_delta_file_that_was_touched_is_an_error(tmp_path: Path, missing: bool) -> None:
    edited(Ledger(model_of(), directory=tmp_path), [0, 1])
    path = tmp_path / "000001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    if not missing:
        path.write_bytes(content)
    with pytest.raises(LedgerError, match="is missing" if missing else "SHA-256 differs"):
        Ledger(model_of(), directory=tmp_path).replay()


def test_another_model_is_refused(tmp_path: Path) -> None:
    Ledger(model_of(), directory=tmp_path).open(editor="Toy")
    with pytest.raises(LedgerError, match="model is"):
        Ledger(build_tiny("gpt2", seed=1), directory=tmp_path).open(editor="Toy")


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    edited(Ledger(model_of(), directory=tmp_path), [0])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["000001.safetensors", "journal.jsonl"]
    content = (tmp_path / names[0]).read_bytes()
    # A pickle starts with 0x80, PyTorch's own files with a ZIP header; this is length and JSON.
    assert content[8:9] == b"{"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("back", [["e1"], ["e3"], ["e5"], ["e3", "e1"], ["e1", "e3", "e5"]])
def test_a_redo_gives_the_old_position_and_the_old_bits(
    dtype: torch.dtype, on_disk: bool, back: list[str], tmp_path: Path
) -> None:
    folder = tmp_path if on_disk else None
    model, twin, fresh = model_of(dtype), model_of(dtype), model_of(dtype)
    history = History()
    ledger = edited(Ledger(model, history, folder), range(6))
    whole = weights_hash(model)
    ledger.undo(["e1", "e3", "e5"])
    ledger.redo(back)
    left = [n for n in range(6) if f"e{n}" not in {"e1", "e3", "e5"} or f"e{n}" in back]
    edited(Ledger(twin), left)
    assert weights_hash(model) == weights_hash(twin)
    assert ledger.request_ids == tuple(f"e{n}" for n in left)
    assert history.ids == [f"e{n}" for n in left]
    if on_disk:
        again = Ledger(fresh, directory=tmp_path)
        again.replay()
        assert weights_hash(fresh) == weights_hash(model)
        again.redo([f"e{n}" for n in (1, 3, 5) if n not in left])
        assert weights_hash(fresh) == whole
    else:
        ledger.redo([f"e{n}" for n in (1, 3, 5) if n not in left])
        assert weights_hash(model) == whole


def test_what_cannot_be_redone_is_named() -> None:
    ledger = edited(Ledger(model_of()), range(3))
    with pytest.raises(LedgerError, match="no edit undone is called 'e1'"):
        ledger.redo(["e1"])
    ledger.undo(["e1"])
    edited(ledger, [1])
    with pytest.raises(LedgerError, match="already in force: e1; undo them before"):
        ledger.redo(["e1"])
    ledger.undo(["e1"])
    ledger.redo(["e1"])
    assert ledger.request_ids == ("e0", "e2", "e1")


def test_deltas_of_a_run_on_disk_are_loaded_when_they_are_read(tmp_path: Path) -> None:
    model = model_of()
    ledger = Ledger(model, directory=tmp_path)
    count = _CACHED + 20
    for number in range(count):
        update = LowRank(torch.randn(32, 1) * 0.01, torch.randn(1, 48))
        ledger.commit(Delta((f"e{number}",), {WEIGHTS[0]: update}), [])
    assert len(ledger.in_force._deltas) == _CACHED
    before = weights_hash(model)
    ledger.undo(["e0"])
    ledger.redo(["e0"])
    assert weights_hash(model) == before
    assert [one.request_ids for one in ledger.in_force] == [(f"e{n}",) for n in range(count)]
    assert len(ledger.in_force._deltas) == _CACHED
    (tmp_path / "000001.safetensors").unlink()
    with pytest.raises(LedgerError, match=r"000001\.safetensors is missing"):
        ledger.undo(["e0"])
    assert weights_hash(model) == before
    assert len(ledger.request_ids) == count


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_a_replay_that_fails_in_the_middle_leaves_the_model_alone(how: str, tmp_path: Path) -> None:
    edited(Ledger(model_of(), directory=tmp_path), range(4))
    path = tmp_path / "000003.safetensors"
    whole = path.read_bytes()
    path.unlink()
    if how == "changed":
        path.write_bytes(whole + b" ")
    fresh = model_of()
    before = weights_hash(fresh)
    ledger = Ledger(fresh, directory=tmp_path)
    with pytest.raises(LedgerError, match=r"000003\.safetensors is"):
        ledger.replay()
    assert weights_hash(fresh) == before
    assert ledger.request_ids == ()
    path.write_bytes(whole)
    ledger.replay()
    assert ledger.request_ids == ("e0", "e1", "e2", "e3")


def test_another_writer_keeps_its_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    early, late = Ledger(model_of(), directory=tmp_path), Ledger(model_of(), directory=tmp_path)
    edited(early, [0])
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LedgerError, match="changed by another process"):
        edited(late, [1])
    # Also where the other one commits while this one writes its delta.
    third, save = Ledger(model_of(), directory=tmp_path), Delta.save

    def meanwhile(self: Delta, path: Path) -> None:
        save(self, path)
        monkeypatch.undo()
        edited(early, [2])
        files.update({path: path.read_bytes() for path in (tmp_path / "000002.safetensors",)})

    monkeypatch.setattr(Delta, "save", meanwhile)
    with pytest.raises(LedgerError, match="changed by another process"):
        edited(third, [3])
    left = {path: path.read_bytes() for path in tmp_path.iterdir()}
    journal = tmp_path / "journal.jsonl"
    assert {**left, journal: b""} == {**files, journal: b""}
    assert Journal(tmp_path).active()[-1].ids == ("e2",)
