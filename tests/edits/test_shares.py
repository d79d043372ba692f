"""Shares of requests in a layer's output: they sum to the update, and equal undo and re-solving."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_edit.editors import (
    D4S,
    EMMET,
    ENCORE,
    MEMIT,
    NSE,
    PMET,
    PRUNE,
    RECT,
    ROME,
    RROME,
    SIR,
    AlphaEdit,
    Editor,
    OneLI,
    UltraEdit,
)
from lightning_edit.editors.locate.solver import LeastSquares
from lightning_edit.edits.columns import NO_REQUEST
from lightning_edit.edits.delta import Delta, Dense, LowRank
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.shares import shares_of
from lightning_edit.functional.solve import least_squares
from lightning_edit.inference.hooks import capture
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tiny, build_tokenizer

#: Facts in scripts of one and of several bytes a character.
FACTS = (
    EditRequest("latin", "The capital of France is", "Rome", "France"),
    EditRequest("cyrillic", "Столица страны Россия это", "Осло", "Россия"),
    EditRequest("han", "中国的首都是", "东京", "中国"),
    EditRequest("two words", "The mother tongue of Danielle Darrieux is", "Paris", "Danielle"),
)
CORPUS = [f"{fact.prompt} {fact.target}" for fact in FACTS]
LOCATE: dict[str, Any] = {"steps": 4, "statistics": "identity", "context_templates": ["{}"]}

SUMS: dict[str, Callable[[], Editor]] = {
    "MEMIT": lambda: MEMIT(moment_weight=5.0, **LOCATE),
    "EMMET": lambda: EMMET(**LOCATE),
    "PMET": lambda: PMET(moment_weight=5.0, **LOCATE),
    "AlphaEdit": lambda: AlphaEdit(**LOCATE),
    "ENCORE": lambda: ENCORE(moment_weight=5.0, **LOCATE),
    "NSE": lambda: NSE(moment_weight=5.0, neurons=1.0, **LOCATE),
    "D4S": lambda: D4S(moment_weight=5.0, **LOCATE),
    "ROME": lambda: ROME(**LOCATE),
    "RROME": lambda: RROME(**LOCATE),
    "UltraEdit": lambda: UltraEdit(eta=1.0),
    "OneLI": lambda: OneLI(MEMIT(moment_weight=5.0, **LOCATE), alpha=0.5),
}

#: Of each kind one is tested by default, the others are slow tests.
QUICK = ("MEMIT", "AlphaEdit", "NSE", "ROME", "UltraEdit")


def bound(editor: Editor, family: str) -> Editor:
    model = build_tiny(family, vocab_size=300)
    tokenizer = build_tokenizer(vocab_size=300, corpus=CORPUS)
    return editor.bind(model.requires_grad_(False), tokenizer).eval()


def edit(editor: Editor, facts: tuple[EditRequest, ...] = FACTS) -> Delta:
    return editor.edit(encode_batch(editor.prompts, list(facts)))


def keys_on_edited(editor: Editor, delta: Delta, prompt: str) -> dict[str, Tensor]:
    """Read a layer's inputs on the edited model, at every token."""
    model, ids = editor.language_model, editor.tokenizer(prompt, return_tensors="pt").input_ids
    modules = [name.removesuffix(".weight") for name in delta.weights]
    with (
        delta.applied(model),
        torch.no_grad(),
        capture(model, dict.fromkeys(modules, "input")) as c,
    ):
        model(input_ids=ids)
    return {f"{name}.weight": value[0].double() for name, value in c.items()}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SUMS]
)
@pytest.mark.parametrize(
    "family",
    ["qwen3", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "llama", "gemma3_text"))],
)
def test_shares_of_requests_sum_to_the_update(name: str, family: str) -> None:
    if name == "D4S" and family == "gemma3_text":
        pytest.skip("D4S refuses norms behind the MLP")
    editor = bound(SUMS[name](), family)
    delta = edit(editor)
    assert delta.weights
    assert delta.columns.keys() == delta.weights.keys()
    for parameter, keys in keys_on_edited(editor, delta, "The river Rhône flows, 中国").items():
        shares = list(shares_of(delta, parameter))
        assert {share.by for share in shares} == {"columns"}
        assert [share.ids for share in shares] == [(fact.id,) for fact in FACTS] or name in (
            "NSE",  # facts that are at their targets are not written
            "UltraEdit",  # longest first
        )
        whole = keys @ delta.weights[parameter].dense().mT
        summed = torch.stack([share.at(keys) for share in shares]).sum(0)
        assert (summed - whole).norm() <= 1e-6 * whole.norm()
        assert (summed - whole).abs().max() <= 1e-6
        gradients = torch.randn(whole.shape, dtype=torch.float64)
        along = torch.stack([share.along(keys, gradients) for share in shares]).sum(0)
        torch.testing.assert_close(along, (whole * gradients).sum(1))


@pytest.mark.parametrize("name", ["MEMIT", "ROME", "UltraEdit"])
def test_of_an_edit_alone_undo_takes_its_share_away(name: str) -> None:
    editor = bound(SUMS[name](), "gpt2")
    edited = editor.edit_model(editor.language_model, editor.tokenizer, FACTS[:2])
    edited.edit(FACTS[2])
    delta = edited.ledger.deltas[-1]
    model = edited.model
    for parameter, update in delta.weights.items():
        (share,) = shares_of(delta, parameter)
        layer = model.get_submodule(parameter.removesuffix(".weight"))
        keys = torch.randn(5, update.dense().shape[1])
        with torch.no_grad():
            after = layer(keys)
        edited.undo([FACTS[2].id])
        with torch.no_grad():
            before = layer(keys)
        edited.redo([FACTS[2].id])
        taken = (after - before).double()
        assert (taken - share.at(keys)).norm() <= 1e-4 * taken.norm() + 1e-6
        assert taken.norm() > 0


@pytest.mark.parametrize("name", ["MEMIT", "EMMET", "AlphaEdit"])
def test_written_together_it_is_what_solving_again_takes_away(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: dict[str, tuple[Any, Tensor, Tensor]] = {}
    real = LeastSquares.solve

    def solve(self: LeastSquares, layer: Any, keys: Tensor, residuals: Tensor) -> Any:
        solved[layer.parameter] = (self, layer, keys, residuals)  # type: ignore[assignment]
        return real(self, layer, keys, residuals)

    monkeypatch.setattr(LeastSquares, "solve", solve)
    editor = bound(SUMS[name](), "qwen3")
    delta = edit(editor)
    x = torch.randn(3, 48, dtype=torch.float64)
    for parameter in delta.weights:
        solver, layer, keys, residuals = solved[parameter]  # type: ignore[misc]
        whole = real(solver, layer, keys, residuals)
        for number, share in enumerate(shares_of(delta, parameter)):
            # The request's key stays, and nothing is to be written there.
            silent = residuals.clone()
            silent[:, number] = 0
            without = real(solver, layer, keys, silent)
            lost = x @ (whole.left @ whole.right - without.left @ without.right).mT
            assert (lost - share.at(x)).norm() <= 1e-6 * lost.norm()
            # The request is left out altogether; EMMET damps several keys, never a single one.
            kept = [n for n in range(len(FACTS)) if n != number]
            damping = solver.damping if solver.mode == "equality" else None
            preserved = solver.preserved(layer)
            less = least_squares(keys[:, kept], residuals[:, kept], preserved, solver.mode, damping)
            lost = x @ (whole.left @ whole.right - less.left @ less.right).mT
            again = share.resolved()
            assert again is not None
            assert (again.at(x) - lost).norm() <= 1e-6 * lost.norm()


def test_a_mask_or_a_restraint_is_a_share_of_the_whole_commit() -> None:
    for wrapper in (RECT(SUMS["MEMIT"](), kept=0.4), PRUNE(SUMS["MEMIT"](), "linear")):
        editor = bound(wrapper, "gpt2")
        if isinstance(editor, PRUNE):  # as if the weights were small, so that it must restrain
            editor._unedited_norms = dict.fromkeys(
                (editor.view.parameter(n) for n in range(3)), 1e-3
            )
        delta = edit(editor)
        assert not delta.columns
        x = torch.randn(2, 48, dtype=torch.float64)
        for parameter, update in delta.weights.items():
            (share,) = shares_of(delta, parameter)
            assert (share.by, share.ids) == ("undo", tuple(fact.id for fact in FACTS))
            assert share.resolved() is None
            assert share.overlap(x[0]) is None
            torch.testing.assert_close(share.at(x), x @ update.dense().mT)


def test_prune_passes_small_updates_on_with_their_columns() -> None:
    editor = bound(PRUNE(SUMS["MEMIT"]()), "gpt2")
    assert edit(editor).columns.keys() == edit(editor).weights.keys()


def test_facts_that_sir_restores_belong_to_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny("gpt2", vocab_size=300)
    tokenizer = build_tokenizer(vocab_size=300, corpus=CORPUS)
    fact = EditRequest("kept", "The capital of Italy is", "Rome", "Italy")
    host = MEMIT(moment_weight=1e-3, **LOCATE)
    sir = SIR([fact], host, threshold=-1e9, candidates=1, revised=1)
    # As if the tiny model knew it.
    monkeypatch.setattr(sir, "_answer_nll", lambda facts: (torch.zeros(1), torch.ones(1).bool()))
    sir.bind(model.requires_grad_(False), tokenizer)
    delta = edit(sir, FACTS[:2])
    assert delta.info["revised"] == ["kept"]
    for parameter, owners in delta.columns.items():
        assert owners == (0, 1, NO_REQUEST)
        shares = list(shares_of(delta, parameter))
        assert [share.ids for share in shares] == [("latin",), ("cyrillic",), ()]


def test_a_delta_file_keeps_its_columns(tmp_path: Path) -> None:
    delta = edit(bound(SUMS["UltraEdit"](), "gpt2"))
    delta.save(tmp_path / "one.safetensors")
    loaded = Delta.load(tmp_path / "one.safetensors")
    assert loaded.columns == delta.columns
    owners = next(iter(delta.columns.values()))
    assert sorted(set(owners)) == [0, 1, 2, 3]  # a column for each token of the answers
    assert len(owners) > len(FACTS)
    replace(loaded, columns={}).save(tmp_path / "old.safetensors")
    assert Delta.load(tmp_path / "old.safetensors").columns == {}


def test_columns_must_fit_the_update() -> None:
    low, dense = LowRank(torch.ones(3, 2), torch.ones(2, 4)), Dense(torch.ones(3, 4))
    assert Delta(("a", "b"), {"w": low}, columns={"w": (0, 1)}).columns
    for owners in ((0, 2), (0, -2)):
        with pytest.raises(ValueError, match="expected the index of a request"):
            Delta(("a", "b"), {"w": low}, columns={"w": owners})
    # An update that somebody replaced is no longer the sum that its columns were.
    delta = Delta(("a", "b"), {"w": low, "v": low}, columns={"w": (0, 1), "v": (1, 1)})
    for other in (dense, LowRank(torch.ones(3, 1), torch.ones(1, 4))):
        assert replace(delta, weights={"w": other, "v": low}).columns == {"v": (1, 1)}
    assert replace(delta, weights={}).columns == {}


def test_a_bias_is_added_whatever_the_input() -> None:
    bias = torch.tensor([1.0, -2.0])
    (share,) = shares_of(Delta(("a",), {"b": Dense(bias)}), "b")
    torch.testing.assert_close(share.at(torch.randn(3, 5)), bias.double().expand(3, 2))
