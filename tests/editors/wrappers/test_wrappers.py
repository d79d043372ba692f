"""Editors around editors: shaping, history, nesting, and parity of RECT with published numbers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import D4S, FTL, FTM, MEMIT, PRUNE, RECT, ROME, Editor, OneLI
from lightning_edit.editors.wrappers.one_li import ALPHAS, scaled
from lightning_edit.editors.written import answers_with
from lightning_edit.edits.correction import correction_of
from lightning_edit.edits.delta import Delta, Dense, LowRank, WeightUpdate
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.functional.shaping import keep_relatively_largest, restrain
from lightning_edit.models.weights import weight, weights_hash
from lightning_edit.types import EditBatch, EditRequest
from tests.editors.golden import HUNDRED, batch, golden, model, relative, statistics, tokenizer
from tests.models.tiny import TINY, build_tokenizer

pytestmark = pytest.mark.bits

REQUESTS = [
    EditRequest("a", "The capital of France is", "Rome", "France"),
    EditRequest("b", "The mother tongue of Danielle Darrieux is", "Paris", "Danielle Darrieux"),
    EditRequest("c", "The capital of Italy is", "Paris", "Italy"),
]


def memit(**arguments: Any) -> MEMIT:
    return MEMIT(statistics="identity", steps=4, moment_weight=20.0, **arguments)


def bind(editor: Editor) -> Editor:
    language_model = TINY["gpt2"]().requires_grad_(False)
    return editor.bind(language_model, build_tokenizer())


def requests(editor: Editor) -> list[EditBatch]:
    return encode_batch(editor.tokenizer, REQUESTS).split()


def test_rect_keeps_its_share_and_nothing_else() -> None:
    editor = bind(RECT(memit(), kept=0.25))
    for name, update in editor.edit(requests(editor)[0]).weights.items():
        host = editor.editor.edit(requests(editor)[0]).weights[name].dense().float()
        kept = update.dense().float()
        assert math.isclose(float((kept != 0).float().mean()), 0.25, abs_tol=1e-3)
        assert torch.equal(kept[kept != 0], host[kept != 0])
        original = weight(editor.language_model, name).read(torch.float32)
        change = (host / original).abs()
        assert change[kept != 0].min() >= change[kept == 0].max()


def test_rect_that_keeps_all_changes_nothing() -> None:
    update = torch.randn(5, 7)
    assert torch.equal(keep_relatively_largest(update, torch.randn(5, 7), 1.0), update)


@pytest.mark.parametrize("base", [math.e, 2.0, 1.2])
def test_restrained_values_are_continuous_and_keep_their_order(base: float) -> None:
    values = torch.linspace(0.5, 5.0, 50).double()
    shrunk = restrain(values, 2.0, "log", base)
    assert torch.equal(shrunk[values <= 2], values[values <= 2])
    expected = values[values > 2].log() / math.log(base) - math.log(2.0) / math.log(base) + 2
    assert torch.allclose(shrunk[values > 2], expected)
    assert (shrunk.diff() > 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_interpolation_scales_the_update_and_keeps_factors(alpha: float) -> None:
    editor = bind(OneLI(memit(), alpha))
    mine, host = (e.edit(requests(editor)[0]).weights for e in (editor, editor.editor))
    for name, update in mine.items():
        assert isinstance(update, LowRank)
        assert torch.allclose(update.dense(), alpha * host[name].dense())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_auto_interpolates_as_little_as_writes_what_the_host_writes(family: str) -> None:
    editor = OneLI()
    editor.bind(TINY[family]().requires_grad_(False), build_tokenizer())
    batch = encode_batch(editor.tokenizer, REQUESTS)
    host = editor.editor.edit(batch)
    alpha = editor.edit(batch).info["auto"]["alpha"]
    assert alpha == editor.chosen["alpha"]

    def written(share: float) -> torch.Tensor:
        part = {name: scaled(update, share) for name, update in host.weights.items()}
        return answers_with(editor, Delta(batch.ids, part), batch.encoded).right

    whole = written(1.0)
    assert whole.any()
    assert alpha == 1.0 or torch.equal(written(alpha) & whole, whole)
    smaller = [one for one in ALPHAS if one < alpha]
    assert smaller
    assert not any(torch.equal(written(one) & whole, whole) for one in smaller)


def test_auto_takes_the_whole_update_where_it_writes_no_answer() -> None:
    editor = OneLI(FTM(lr=1e-9, steps=1))
    editor.bind(TINY["gpt2"]().requires_grad_(False), build_tokenizer())
    assert editor.edit(encode_batch(editor.tokenizer, REQUESTS)).info["auto"]["alpha"] == 1.0


def test_each_of_independent_edits_has_its_own_weight() -> None:
    editor = OneLI(memit())
    bind(editor)
    batch = encode_batch(editor.tokenizer, REQUESTS)
    hosts = editor.editor.edit_independent(batch)
    for host, delta in zip(hosts, editor.edit_independent(batch), strict=True):
        for name, update in delta.weights.items():
            expected = delta.info["auto"]["alpha"] * host.weights[name].dense()
            assert torch.allclose(update.dense(), expected)


class Fixed(Editor):
    """Adds the same update every time, to see what a wrapper makes of it."""

    def __init__(self, name: str, update: WeightUpdate) -> None:
        super().__init__()
        self.name, self.update = name, update
        self.seen: list[Delta] = []

    def edit(self, batch: EditBatch) -> Delta:
        return Delta(batch.ids, {self.name: self.update})

    def remember(self, delta: Delta) -> None:
        self.seen.append(delta)

    def recall(self, delta: Delta) -> None:
        self.seen.append(delta)

    def forget(self, delta: Delta) -> None:
        self.seen.remove(delta)


def large_host(low_rank: bool) -> Fixed:
    torch.manual_seed(0)
    left, right = torch.randn(32, 2), torch.randn(2, 48)
    low = LowRank(left, right)
    update = low if low_rank else Dense(low.dense().float())
    return Fixed("transformer.h.1.mlp.c_proj.weight", update)


def restrained(total: torch.Tensor, largest: float) -> torch.Tensor:
    U, S, Vh = torch.linalg.svd(total, full_matrices=False)
    return (U * restrain(S, largest, "log", math.e)) @ Vh


@pytest.mark.parametrize("low_rank", [True, False])
@pytest.mark.parametrize("iterative", [True, False])
def test_prune_replaces_the_total(low_rank: bool, iterative: bool) -> None:
    host = large_host(low_rank)
    editor = bind(PRUNE(host, iterative=iterative))
    pristine = weights_hash(editor.language_model)
    accessor = weight(editor.language_model, host.name)
    original = accessor.read()
    largest = float(torch.linalg.matrix_norm(original, ord=2))
    ledger = Ledger(editor.language_model, editor)
    total, once = torch.zeros_like(original), torch.zeros_like(original)
    for part in requests(editor):
        once = once + host.update.dense()
        total = restrained(total + host.update.dense() if iterative else once, largest)
        delta = editor.edit(part)
        assert isinstance(delta.weights[host.name], LowRank) == low_rank
        ledger.commit(delta, part.requests)
        assert relative(accessor.read() - original, total) < 1e-5
    # Shrinking again and again is another thing than shrinking once.
    assert iterative == (relative(total, restrained(once, largest)) > 0.05)
    assert [delta.request_ids for delta in host.seen] == [("a",), ("b",), ("c",)]
    ledger.undo(["b"])
    assert relative(editor.totals.state()[host.name], accessor.read() - original) < 1e-5
    ledger.undo(["a", "c"])
    assert not host.seen
    assert not editor.totals.state()
    assert weights_hash(editor.language_model) == pristine


def test_after_an_undo_prune_restrains_what_is_in_force() -> None:
    host = large_host(low_rank=True)
    editor = bind(PRUNE(host))
    accessor = weight(editor.language_model, host.name)
    original = accessor.read()
    largest = float(torch.linalg.matrix_norm(original, ord=2))
    ledger = Ledger(editor.language_model, editor)
    *first, last = requests(editor)
    for scale, part in enumerate(first, start=1):
        host.update = LowRank(large_host(True).update.left * scale, host.update.right)
        ledger.commit(editor.edit(part), part.requests)
    ledger.undo(["a"])
    host.update = LowRank(host.update.left * 1e-6, host.update.right)
    ledger.commit(editor.edit(last), last.requests)
    left = 2 * large_host(True).update.dense() + host.update.dense()
    assert relative(accessor.read() - original, restrained(left, largest)) < 1e-5
    ledger.undo(["b"])
    ledger.undo(["c"])
    assert torch.equal(accessor.read(), original)


def test_after_an_undo_prune_restrains_a_joint_solution_once() -> None:
    def prune() -> tuple[Editor, Ledger]:
        editor = bind(PRUNE(D4S(20.0, statistics="identity", steps=4, layers=[1]), "linear"))
        # So small a matrix that any edit is above its largest singular value.
        accessor = weight(editor.language_model, name)
        accessor.write(accessor.read() * 1e-3)
        return editor, Ledger(editor.language_model, editor)

    name = large_host(True).name
    values = []
    for undone in (["a"], []):
        editor, ledger = prune()
        *first, last = requests(editor)
        for part in first[0 if undone else 1 :]:
            ledger.commit(editor.edit(part), part.requests)
        ledger.undo(undone)
        delta = editor.edit(last)
        assert correction_of(delta, name) is not None
        ledger.commit(delta, last.requests)
        values.append(weight(editor.language_model, name).read())
    assert relative(values[0], values[1]) < 1e-5


@pytest.mark.parametrize("low_rank", [True, False])
def test_prune_resumes_with_the_same_bits(low_rank: bool, tmp_path: Path) -> None:
    editor = bind(PRUNE(large_host(low_rank)))
    ledger = Ledger(editor.language_model, editor, tmp_path)
    ledger.open()
    *first, last = requests(editor)
    for part in first:
        ledger.commit(editor.edit(part), part.requests)
    resumed = bind(PRUNE(large_host(low_rank)))
    resumed.load_state_dict(editor.state_dict())
    again = Ledger(resumed.language_model, resumed, tmp_path)
    again.replay(remember=False)
    for undone in ([], ["a"]):
        for one in (ledger, again):
            one.journal = None
            one.undo(undone)
        mine, other = (one.edit(last).weights for one in (editor, resumed))
        assert all(torch.equal(mine[name].dense(), other[name].dense()) for name in mine)


def test_prune_leaves_small_updates_as_they_are() -> None:
    editor = bind(PRUNE(memit()))
    mine, host = (e.edit(requests(editor)[0]).weights for e in (editor, editor.editor))
    assert all(torch.equal(mine[name].dense(), host[name].dense()) for name in mine)
    assert not editor.edit(requests(editor)[0]).history


def test_totals_travel_in_the_state_dict() -> None:
    editor = bind(PRUNE(large_host(low_rank=True)))
    part = requests(editor)[0]
    Ledger(editor.language_model, editor).commit(editor.edit(part), part.requests)
    outer = bind(RECT(PRUNE(large_host(low_rank=True))))
    outer.load_state_dict(RECT(editor).state_dict())
    assert editor.totals.state()
    assert outer.editor.totals.state().keys() == editor.totals.state().keys()


def test_nested_wrappers_bind_remember_and_undo() -> None:
    editor = RECT(PRUNE(OneLI(memit(), 0.5)), kept=0.5)
    language_model = TINY["gpt2"]().requires_grad_(False)
    pristine = weights_hash(language_model)
    edited = editor.edit_model(language_model, build_tokenizer(), REQUESTS[:2])
    assert editor.editor.totals.state()
    assert weights_hash(language_model) != pristine
    edited.undo()
    assert weights_hash(language_model) == pristine
    assert not editor.editor.totals.state()


def test_flags_are_those_of_the_host() -> None:
    assert RECT(ROME()).batched is False
    assert RECT(PRUNE(ROME())).needs_statistics is True
    assert RECT(PRUNE(FTL())).needs_statistics is RECT(FTL()).needs_subject is False
    assert RECT().batched is True


def test_wrong_arguments_are_refused() -> None:
    for wrong in (lambda: RECT(kept=0.0), lambda: OneLI(alpha=1.5), lambda: PRUNE(base=1.0)):
        with pytest.raises(ValueError, match="got"):
            wrong()


@pytest.mark.parametrize(
    "mode", ["ten-float32", pytest.param("batch100-float32", marks=pytest.mark.slow)]
)
def test_rect_agrees_with_published_code(mode: str, tmp_path: Path) -> None:
    example = golden(f"MEMIT_rect/tiny-gpt2/{mode}")
    hparams = example.meta["hparams"]
    language_model = model(example.model_name)
    host = MEMIT(
        moment_weight=float(hparams["mom2_update_weight"]),
        clamp=float(hparams["clamp_norm_factor"]),
        layers=hparams["layers"],
        statistics=statistics(example.model_name, language_model, tmp_path),
        steps=hparams["v_num_grad_steps"],
        context_templates=example.templates,
    )
    editor = RECT(host, kept=0.4).bind(language_model, tokenizer(example.model_name))
    delta = editor.edit(batch(example))
    for name, update in delta.weights.items():
        theirs = example.tensors[f"delta.{name}"].mT
        same = (update.dense() != 0) == (theirs != 0)
        # Two entries whose rank is that of the threshold may trade places by float32's rounding.
        assert (~same).sum() <= 2
        limit = HUNDRED if mode == "batch100-float32" else 1e-5
        assert relative(update.dense() * same, theirs * same) < limit


def test_a_wrappers_class_has_the_flags_of_its_default_host() -> None:
    assert OneLI.architectures == FTM.architectures == OneLI().architectures
    assert not OneLI.needs_statistics
    assert RECT.architectures == MEMIT.architectures
    assert RECT.needs_statistics
