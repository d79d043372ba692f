"""First-order effects of updates: derivatives of answers, and what ranks facts by them."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_edit.editors import FT, MEMIT, SIR, UltraEdit
from lightning_edit.editors.base import Editor
from lightning_edit.editors.first_order import first_order_effects
from lightning_edit.editors.locate.trial import trial_effects
from lightning_edit.edits.delta import Delta, Dense, LowRank
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ArchitectureError, ConfigError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.weights import weight, weights_hash
from lightning_edit.types import EditRequest
from lightning_edit.types.facts import Fact
from tests.models.tiny import build_tiny, build_tokenizer

LOCATE: dict[str, Any] = {"steps": 4, "statistics": "identity", "context_templates": ["{}"]}
EDITS = [
    EditRequest("paris", "The capital of France is", "Rome", "France"),
    EditRequest("осло", "Столица страны Россия это", "Осло", "Россия"),
]
FACTS = [
    EditRequest("rome", "The capital of Italy is", "Rome", "Italy"),
    EditRequest("париж", "Столица страны Франция это", "Париж", "Франция"),
    EditRequest("北京", "日本的首都是", "北京", "日本"),
    EditRequest("lyon", "Lyon lies in", "the south of France", "Lyon"),
    EditRequest("rhône", "The river Rhône flows through", "Arles", "Rhône"),
]
CORPUS = [f"{one.prompt} {one.target}" for one in (*EDITS, *FACTS)]


def tokenizer() -> Any:
    return build_tokenizer(vocab_size=320, corpus=CORPUS)


def bound(editor: Editor, family: str, double: bool = True) -> Editor:
    model = build_tiny(family, vocab_size=320).requires_grad_(False)
    return editor.bind(model.double() if double else model, tokenizer())


def rows_of(editor: Editor, facts: list[EditRequest]) -> list[tuple[Any, Any]]:
    encoded = encode_batch(editor.prompts, facts).encoded
    return [(one.prompt_ids, one.target_ids) for one in encoded]


def mean_log_probs(model: Any, rows: list[tuple[Any, Any]]) -> torch.Tensor:
    batch = AnswerRows.of(model, rows)
    with torch.no_grad():
        logits = answer_logits(model, batch).double()
    chosen = logits.gather(1, batch.targets[:, None])[:, 0] - logits.logsumexp(1)
    sums = chosen.new_zeros(len(rows)).index_add(0, batch.rows, chosen)
    return sums / torch.tensor([len(answer) for _, answer in rows])


def scaled(delta: Delta, factor: float) -> Delta:
    weights: dict[str, Any] = {}
    for name, update in delta.weights.items():
        low = isinstance(update, LowRank)
        weights[name] = (
            LowRank(update.left * factor, update.right)  # type: ignore[union-attr]
            if low
            else Dense(update.dense() * factor)
        )
    return replace(delta, weights=weights, columns={}, history={})


@pytest.mark.parametrize(
    ("family", "make"),
    [
        ("qwen2", lambda: MEMIT(moment_weight=1.0, **LOCATE)),
        ("opt", lambda: FT(layers=[1], lr=1e-2, steps=3)),
        pytest.param("gpt2", lambda: UltraEdit(eta=1.0), marks=pytest.mark.slow),
        pytest.param("bloom", lambda: UltraEdit(eta=1.0), marks=pytest.mark.slow),
    ],
    ids=["low rank, several blocks", "a whole matrix, flattened rows", "Conv1D", "BLOOM"],
)
def test_effects_are_derivatives_along_the_update(family: str, make: Any) -> None:
    editor = bound(make(), family)
    model, rows = editor.language_model, rows_of(editor, FACTS)
    delta = editor.edit(encode_batch(editor.prompts, EDITS))
    before = weights_hash(model)
    (found,) = first_order_effects(model, [delta], rows, 2)
    assert weights_hash(model) == before
    step = 1e-3 if family == "qwen2" else 1e-5  # norms of newer models compute in float32
    sides = []
    for sign in (1, -1):
        with scaled(delta, sign * step).applied(model):
            sides.append(mean_log_probs(model, rows))
    torch.testing.assert_close(found, (sides[0] - sides[1]) / (2 * step), rtol=2e-2, atol=2e-3)
    assert float(found.abs().max()) > 0.05


def test_several_updates_at_once_and_a_bias() -> None:
    editor = bound(MEMIT(moment_weight=1.0, **LOCATE), "gpt2")
    model, rows = editor.language_model, rows_of(editor, FACTS)
    one, other = (editor.edit(part) for part in encode_batch(editor.prompts, EDITS).split())
    name = editor.view.parameter(0).replace("weight", "bias")
    bias = Delta(("bias",), {name: Dense(torch.linspace(-1, 1, 32).double())})
    together = first_order_effects(model, [one, other, bias], rows)
    for number, delta in enumerate((one, other, bias)):
        (alone,) = first_order_effects(model, [delta], rows)
        torch.testing.assert_close(together[number], alone)
    with scaled(bias, 1e-6).applied(model):
        up = mean_log_probs(model, rows)
    up -= mean_log_probs(model, rows)
    torch.testing.assert_close(together[2], up / 1e-6, rtol=1e-3, atol=1e-4)
    table = next(n for n, _ in model.named_parameters() if "wte" in n)
    update = Delta(("table",), {table: Dense(torch.zeros(weight(model, table).shape))})
    with pytest.raises(ArchitectureError, match=r"wte.*acts elsewhere.*an editor of linear layers"):
        first_order_effects(model, [update], rows)


def test_sir_checks_the_facts_that_move_most(monkeypatch: pytest.MonkeyPatch) -> None:
    host = MEMIT(moment_weight=1.0, **LOCATE)
    sir = SIR(FACTS, host, candidates=2, candidates_by="first_order")
    model = build_tiny("llama", vocab_size=320).requires_grad_(False).double()
    with monkeypatch.context() as patch:  # as if the tiny model knew them
        known = (torch.zeros(len(FACTS)), torch.ones(len(FACTS)).bool())
        patch.setattr(sir, "_answer_nll", lambda facts: known)
        sir.bind(model, tokenizer())
    batch = encode_batch(sir.prompts, EDITS)
    delta = scaled(host.edit(batch), 1e-3)
    rows = rows_of(sir, FACTS)
    before = mean_log_probs(model, rows)
    with delta.applied(model):
        fall = before - mean_log_probs(model, rows)
    expected = fall.abs().argsort(descending=True).tolist()[:2]
    assert sir._most_disturbed(batch, delta) == expected
    # A fact about what is edited may change with it.
    about = [EditRequest("same", "France lies in", "Europe", "France")]
    sir._unedited = replace(sir._unedited, facts=about)
    assert sir._most_disturbed(batch, delta) == []


def test_trial_edits_are_those_that_rome_would_write_and_leave_nothing() -> None:
    model = build_tiny("qwen3", vocab_size=320).requires_grad_(True).train()
    prompts = PromptEncoder.for_model(model, tokenizer())
    facts = [Fact(str(one.subject), "of", one.target, one.prompt, (one.target,)) for one in FACTS]
    before, drawn = weights_hash(model), torch.get_rng_state()
    found = trial_effects(model, prompts, EDITS, facts, 1, "identity")
    assert weights_hash(model) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training
    assert all(one.grad is None and one.requires_grad for one in model.parameters())
    assert found.shape == (2, 5)
    again = trial_effects(model, prompts, EDITS[1:], facts[:2], 1, "identity")
    torch.testing.assert_close(found[1:, :2], again, rtol=1e-2, atol=1e-2)
    assert float(found.abs().max()) > 1e-2
    assert trial_effects(model, prompts, [], facts, 1, "identity").shape == (0, 5)
    nameless = [EditRequest("bare", "It is", "Rome")]
    with pytest.raises(ConfigError, match="need the subject of every request, but bare names none"):
        trial_effects(model, prompts, nameless, facts, 1, "identity")
