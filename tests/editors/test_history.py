"""Sequential editing with a history: sums over what is in force, exact after undo and resume."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import D4S, ENCORE, MEMIT, NSE, PRUNE, AlphaEdit
from lightning_edit.editors.locate.key_history import KeyHistory
from lightning_edit.edits.columns import LEFT_OUT
from lightning_edit.edits.delta import Delta, Dense, LowRank
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.edits.ledger import Ledger
from lightning_edit.functional.solve import Preserved
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditBatch, EditRequest
from tests.models.tiny import TINY, build_tokenizer
from tests.toy import ToyData, toy_model, toy_tokenizer

pytestmark = pytest.mark.bits

REQUESTS = [
    EditRequest("a", "The capital of France is", "Rome", "France"),
    EditRequest("b", "The mother tongue of Danielle Darrieux is", "Paris", "Danielle Darrieux"),
    EditRequest("c", "The capital of Italy is", "Paris", "Italy"),
]
COMMON: dict[str, Any] = {"statistics": "identity", "steps": 4}
EDITORS: dict[str, Any] = {
    "MEMIT": lambda: MEMIT(20.0, keep_history=True, **COMMON),
    "AlphaEdit": lambda: AlphaEdit(**COMMON),
    "ENCORE": lambda: ENCORE(20.0, **COMMON),
    "NSE": lambda: NSE(20.0, **COMMON),
    "D4S": lambda: D4S(20.0, **COMMON),
}
#: The others keep the same sums as one of these; they are slow tests.
DEFAULT = ("NSE", "D4S")
each = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in DEFAULT else pytest.mark.slow) for name in EDITORS],
)


def started(name: str, folder: Path | None = None) -> tuple[Any, Ledger, list[EditBatch]]:
    editor = EDITORS[name]().bind(TINY["gpt2"]().requires_grad_(False), build_tokenizer())
    ledger = Ledger(editor.language_model, editor, folder)
    if folder is not None:
        ledger.open()
    return editor, ledger, encode_batch(editor.tokenizer, REQUESTS).split()


def commit(ledger: Ledger, batch: EditBatch) -> Delta:
    assert ledger.editor is not None
    delta = ledger.editor.edit(batch)
    ledger.commit(delta, batch.requests)
    return delta


def sums(editor: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in editor.past.get_extra_state().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


@each
def test_an_undo_leaves_the_sums_as_if_the_edit_had_never_been(name: str) -> None:
    editor, ledger, batches = started(name)
    nothing = sums(editor)
    assert not nothing
    deltas = [commit(ledger, batch) for batch in batches]
    everything = sums(editor)
    assert all(value.any() for value in everything.values())
    ledger.undo(["b"])
    other = EDITORS[name]().bind(editor.language_model, editor.tokenizer)
    other.remember(deltas[0])
    other.remember(deltas[2])
    assert same(sums(editor), sums(other))
    assert not same(sums(editor), everything)
    ledger.undo(["a", "c"])
    assert same(sums(editor), nothing)


@pytest.mark.slow
@each
def test_after_an_undo_the_same_edit_is_found_again(name: str) -> None:
    editor, ledger, batches = started(name)
    before = weights_hash(editor.language_model)
    commit(ledger, batches[0])
    first = editor.edit(batches[1])
    again = commit(ledger, batches[1])
    ledger.undo(["b"])
    third = editor.edit(batches[1])
    for weight in first.weights:
        assert torch.equal(first.weights[weight].dense(), again.weights[weight].dense())
        # D4S corrects after an undo, here by nothing but rounding.
        difference = first.weights[weight].dense() - third.weights[weight].dense()
        assert difference.norm() <= 1e-6 * first.weights[weight].norm()
    ledger.undo(["a"])
    assert weights_hash(editor.language_model) == before


@each
def test_a_resumed_run_has_the_same_sums_and_can_undo(name: str, tmp_path: Path) -> None:
    editor, ledger, batches = started(name, tmp_path)
    for batch in batches[:2]:
        commit(ledger, batch)
    checkpoint = editor.state_dict()
    resumed, again, _ = started(name, tmp_path)
    resumed.load_state_dict(checkpoint)
    again.replay(remember=False)
    assert same(sums(resumed), sums(editor))
    for mine, other in zip(
        editor.edit(batches[2]).weights.values(),
        resumed.edit(batches[2]).weights.values(),
        strict=True,
    ):
        assert torch.equal(mine.dense(), other.dense())
    for one in (ledger, again):
        one.journal = None
        one.undo(["a"])
    assert same(sums(resumed), sums(editor))


@each
def test_history_changes_later_edits_and_nothing_of_the_export(name: str, tmp_path: Path) -> None:
    editor, ledger, batches = started(name)
    delta = commit(ledger, batches[0])
    later = editor.edit(batches[1])
    assert delta.history
    assert delta.to_lora().keys() == delta.weights.keys()
    delta.save(tmp_path / "delta.safetensors")
    loaded = Delta.load(tmp_path / "delta.safetensors")
    assert same(dict(loaded.history), dict(delta.history))
    ledger.undo(["a"])
    alone = editor.edit(batches[1])
    first = next(iter(later.weights))  # above, keys depend on what the first layer has written
    assert not torch.equal(later.weights[first].dense(), alone.weights[first].dense())


def run(name: str, folder: Path, fail_at: str | None = None, **options: Any) -> str:
    """Run a stream of toy edits, with a planted failure, and return the final hash."""
    model = toy_model().requires_grad_(False)
    editor = EDITORS[name]().bind(model, toy_tokenizer())
    found = editor.edit

    def edit(batch: EditBatch) -> Delta:
        if fail_at in batch.ids:
            raise RuntimeError("planted failure")
        return found(batch)

    editor.edit = edit
    trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    options |= {"protocol": "sequential", "checkpoint_every": 2, "modes": ("tf",)}
    trainer.edit(editor, ToyData(6), run=str(folder), **options)
    return weights_hash(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["D4S", "AlphaEdit"])
def test_an_interrupted_session_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = run(name, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="planted"):
        run(name, tmp_path / "cut", fail_at="fact-5")
    assert run(name, tmp_path / "cut", ckpt_path="last") == whole


def test_a_delta_of_an_earlier_binding_is_no_part_of_the_history() -> None:
    editor, ledger, batches = started("AlphaEdit")
    delta = commit(ledger, batches[0])
    editor.bind(editor.language_model, editor.tokenizer)
    editor.forget(delta)
    assert editor.past.keys(editor.edited_layers[0]) is None


def test_without_history_nothing_is_kept() -> None:
    editor = MEMIT(20.0, **COMMON).bind(TINY["gpt2"]().requires_grad_(False), build_tokenizer())
    delta = editor.edit(encode_batch(editor.tokenizer, REQUESTS))
    editor.remember(delta)
    # What attribution needs is no history of the editor.
    assert all(name.startswith(LEFT_OUT) for name in delta.history)
    assert not dict(editor.named_buffers())


def test_d4s_total_is_the_joint_solution_also_after_an_undo() -> None:
    editor, ledger, batches = started("D4S")
    deltas = [commit(ledger, batch) for batch in batches[:2]]
    ledger.undo(["a"])
    corrected = commit(ledger, batches[2])
    layer = editor.edited_layers[0]
    name = editor.view.parameter(layer)
    assert isinstance(deltas[0].weights[name], LowRank)
    assert isinstance(corrected.weights[name], Dense)
    K = torch.cat([d.history[f"keys/{layer}"] for d in (deltas[1], corrected)]).double()
    R = torch.cat([d.history[f"residuals/{layer}"] for d in (deltas[1], corrected)]).double()
    joint = R.mT @ K @ torch.linalg.inv(20 * torch.eye(K.shape[1]).double() + K.mT @ K)
    total = sum(delta.weights[name].dense() for delta in (deltas[1], corrected))
    assert (total - joint).norm() < 1e-5 * joint.norm()
    assert isinstance(editor.edit(batches[0]).weights[name], LowRank)


def test_nse_writes_only_active_neurons_and_leaves_out_what_is_far(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tokenizer = TINY["gpt2"]().requires_grad_(False), build_tokenizer()
    batch = encode_batch(tokenizer, REQUESTS[:1])
    few = NSE(20.0, neurons=0.5, passes=1, **COMMON).bind(model, tokenizer).edit(batch)
    every = NSE(20.0, neurons=1.0, passes=1, **COMMON).bind(model, tokenizer).edit(batch)
    for name, update in few.weights.items():
        written = update.dense().norm(dim=0) > 0
        assert 0 < int(written.sum()) < 0.7 * len(written)
        assert bool((every.weights[name].dense().norm(dim=0) > 0).all())
    none = NSE(20.0, too_far=1e-3, **COMMON).bind(model, tokenizer).edit(batch)
    assert none.is_empty
    assert not none.history
    assert "a" in caplog.text


def test_nse_and_d4s_search_on_the_original_weights() -> None:
    for name in ("NSE", "D4S"):
        editor, ledger, batches = started(name)
        before = editor.search(batches[1]).wanted
        commit(ledger, batches[0])
        edited = weights_hash(editor.language_model)
        assert torch.equal(editor.search(batches[1]).wanted, before)
        assert weights_hash(editor.language_model) == edited


WIDTH = 36


def remembered(sizes: list[int]) -> list[Delta]:
    generator = torch.Generator().manual_seed(4)
    return [
        Delta(
            (str(number),),
            {},
            history={"keys/0": torch.randn(size, WIDTH, generator=generator)} if size else {},
        )
        for number, size in enumerate(sizes)
    ]


def of(history: torch.Tensor | None) -> Preserved:
    return Preserved.of(2.0 * torch.eye(WIDTH), history=history)


def factor(history: KeyHistory) -> torch.Tensor:
    found = history.factor_with_keys(0, of).factor
    assert found is not None
    return found


@pytest.mark.parametrize("sizes", [[1] * 70, [2, 3, 30, 1, 0, 2, 9, 1], [0, 0]])
def test_an_updated_factor_is_that_of_the_sums_and_resumes_to_the_bit(sizes: list[int]) -> None:
    deltas, device = remembered(sizes), torch.device("cpu")
    history = KeyHistory([0], False, device)
    known: list[Delta] = []
    for number, delta in enumerate(deltas, start=1):
        known.append(delta)
        history.follow(known, HistoryChange("appended", (delta,)))
        expected = of(history.keys(0)).factor
        assert expected is not None
        torch.testing.assert_close(factor(history), expected, rtol=1e-10, atol=1e-10)
        if number % 13 == 0 or number == len(deltas):
            resumed = KeyHistory([0], False, device)
            resumed.set_extra_state(history.get_extra_state())
            resumed.follow(deltas[:number], HistoryChange("restored"))
            assert torch.equal(factor(resumed), factor(history))


def test_an_updated_factor_follows_an_undo() -> None:
    deltas, device = remembered([2] * 40), torch.device("cpu")
    history, other = KeyHistory([0], False, device), KeyHistory([0], False, device)
    for number, delta in enumerate(deltas, start=1):
        history.follow(deltas[:number], HistoryChange("appended", (delta,)))
        factor(history)
    left = deltas[:3] + deltas[4:]
    history.follow(left, HistoryChange("removed", (deltas[3],)))
    for number, delta in enumerate(left, start=1):
        other.follow(left[:number], HistoryChange("appended", (delta,)))
        factor(other)
    assert torch.equal(factor(history), factor(other))


@pytest.mark.parametrize("name", ["MEMIT", "D4S"])
@pytest.mark.parametrize("iterative", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_prune_after_a_replay_goes_on_with_the_same_bits(
    name: str, iterative: bool, tmp_path: Path
) -> None:
    """The norms of the unedited weights travel with the deltas: an edited model hides them."""

    def begun() -> tuple[PRUNE, Ledger]:
        model = TINY["gpt2"]().requires_grad_(False)
        editor = PRUNE(EDITORS[name](), base=1.01, iterative=iterative)
        editor.bind(model, build_tokenizer())
        ledger = Ledger(model, editor, tmp_path)
        ledger.open()
        return editor, ledger

    editor, ledger = begun()
    batches = encode_batch(editor.tokenizer, REQUESTS).split()
    for batch in batches[:2]:
        commit(ledger, batch)
    again, replayed = begun()
    replayed.replay()
    mine, other = editor.edit(batches[2]), again.edit(batches[2])
    assert mine.history.keys() == other.history.keys()
    for weight in mine.weights:
        assert torch.equal(mine.weights[weight].dense(), other.weights[weight].dense())
