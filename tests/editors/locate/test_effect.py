"""Effect of locate-then-edit methods: the edited model has what the target search wanted.

Two computations may agree and both be wrong. Here the edited model is run, text by text, and asked.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_edit.editors import (
    D4S,
    EMMET,
    ENCORE,
    MEMIT,
    NSE,
    PMET,
    RECT,
    ROME,
    RROME,
    AlphaEdit,
)
from lightning_edit.editors.locate.effect import EffectWarnings, site_distance
from lightning_edit.editors.locate.prompts import rewriting_texts
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.suffix.write_path import find_write_paths
from lightning_edit.models.view import resolve
from lightning_edit.statistics.moments import Moments
from lightning_edit.types import EditBatch, EditRequest
from tests.editors.locate import structures
from tests.editors.locate.structures import CONFIGS, HIDDEN, NORMED, PLAIN
from tests.models.tiny import build_tokenizer

REQUESTS = [
    EditRequest("0", "The capital of France is", "Rome", "France"),
    EditRequest("1", "Lyon lies in", "Italy", "Lyon"),
    EditRequest("2", "The mother tongue of Danielle Darrieux is", "Paris", "Danielle Darrieux"),
]
TOKENIZER = build_tokenizer()
#: Bare prompts and a free search, so that nothing but the structure decides.
SEARCH: dict[str, Any] = {
    "context_templates": ["{}"],
    "steps": 6,
    "lr": 0.2,
    "kl_factor": 0.0,
    "weight_decay": 0.0,
    "clamp": 0.75,
}
#: λ so small that targets are written.
WEAK = 1e-4
METHODS: dict[str, Any] = {
    "ROME": ROME,
    "RROME": RROME,
    "EMMET": lambda **own: EMMET(1.0, damping=0.0, **own),
    "MEMIT": lambda **own: MEMIT(WEAK, **own),
    "PMET": lambda **own: PMET(WEAK, **own),
    "AlphaEdit": lambda **own: AlphaEdit(1e-6, 1e-3, **own),
    "ENCORE": lambda **own: ENCORE(WEAK, 1e-6, **own),
    "NSE": lambda **own: NSE(WEAK, neurons=1.0, passes=1, reached=0.0, **own),
    "D4S": lambda **own: D4S(WEAK, **own),
}
#: One structure of every kind; the others are run as slow.
QUICK = {"gptj", "granite", "gemma3_text", "opt"}
FAMILIES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS
]
#: Every method behind a norm, and as slow behind a factor and an MLP that adds the hidden state.
EVERY_METHOD = [
    "gemma3_text",
    pytest.param("bloom", marks=pytest.mark.slow),
    pytest.param("granite", marks=pytest.mark.slow),
]


def texts(batch: EditBatch) -> Any:
    return rewriting_texts(TOKENIZER, batch, ["{}"])


@torch.no_grad()
def run_alone(model: Any, module: str, batch: EditBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Run each prompt alone: the module's output at the subject, and the answer's NLL."""
    found, nll = [], []
    for text in texts(batch):
        seen: list[Any] = []
        handle = model.get_submodule(module).register_forward_hook(
            lambda _, args, output, seen=seen: seen.append(output)
        )
        logits = model(input_ids=torch.tensor([text.ids]), use_cache=False).logits[0].double()
        handle.remove()
        hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        found.append(hidden.reshape(-1, HIDDEN)[text.subject].double())
        answer = torch.tensor(text.answer)[:, None]
        nll.append(-logits[-len(answer) :].log_softmax(-1).gather(1, answer).mean())
    return torch.stack(found), torch.stack(nll)


@cache
@torch.no_grad()
def other_keys(family: str) -> Mapping[str, torch.Tensor]:
    """Second moments of the keys of all tokens but the subjects' last ones.

    An edit that preserves them acts at the subjects alone, as the vectors of a search do.
    """
    model, totals = structures.build(family), {}
    for text in texts(encode_batch(TOKENIZER, REQUESTS)):
        for block in resolve(model).blocks:
            keys: list[torch.Tensor] = []
            handle = model.get_submodule(block.mlp_down).register_forward_pre_hook(
                lambda _, args, keys=keys: keys.append(args[0])
            )
            model(input_ids=torch.tensor([text.ids]), use_cache=False)
            handle.remove()
            every = keys[0].reshape(len(text.ids), -1).float()
            others = every[[n for n in range(len(text.ids)) if n != text.subject]]
            totals[block.mlp_down] = totals.get(block.mlp_down, 0) + others.mT @ others
    for total in totals.values():
        total.diagonal().add_(1e-5 * total.diagonal().mean())
    return totals


@pytest.fixture
def edited(tmp_path: Any) -> Any:
    """Edit a model; return the site's values before, wanted and after, NLLs alike, and the info."""

    def edit(
        method: str, family: str, layers: list[int], dtype: torch.dtype = torch.float32
    ) -> dict[str, Any]:
        model, path = structures.build(family, dtype), tmp_path / "moments.safetensors"
        Moments(other_keys(family), 100, "prompts", "prompts").save(path)
        editor = METHODS[method](layers=layers, statistics=str(path), **SEARCH)
        editor.bind(model, TOKENIZER)
        # Requests that are written one by one would be disturbed by the ones after them.
        batch = encode_batch(TOKENIZER, REQUESTS[: 3 if editor.batched else 1])
        before, nll_before = run_alone(model, editor.site_module, batch)
        wanted = editor.search(batch).wanted[:, -HIDDEN:].double()
        delta = editor.edit(batch)
        with delta.applied(model):
            now, nll = run_alone(model, editor.site_module, batch)
        distance = (now - wanted).norm(dim=1) / (before - wanted).norm(dim=1)
        return {"distance": distance, "before": nll_before, "now": nll, "info": delta.info}

    return edit


def check_one_layer(method: str, family: str, edited: Any) -> None:
    if method == "D4S" and family in NORMED:
        with pytest.raises(ArchitectureError, match="through which vectors do not add; use MEMIT"):
            edited(method, family, [1])
        return
    found = edited(method, family, [1])
    info = found["info"]
    assert found["distance"].max() < 1e-2
    torch.testing.assert_close(
        torch.tensor(info["site_distance"]).double(), found["distance"], rtol=1e-2, atol=1e-4
    )
    searched = torch.tensor(info["nll_searched"]).double()
    for told, seen in (("nll_before", "before"), ("nll_edited", "now")):
        torch.testing.assert_close(
            torch.tensor(info[told]).double(), found[seen], rtol=1e-4, atol=1e-4
        )
    fall = (found["before"] - searched).abs()
    assert fall.max() > 1e-3
    # PMET searches a vector for attention too, which it does not write.
    if method != "PMET":
        assert ((found["now"] - searched).abs() < 0.02 * fall + 2e-3).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["MEMIT", "ROME"])
def test_one_layer_writes_what_was_wanted(method: str, family: str, edited: Any) -> None:
    check_one_layer(method, family, edited)


@pytest.mark.parametrize("family", EVERY_METHOD)
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"MEMIT", "ROME"}))
def test_every_method_writes_what_was_wanted(method: str, family: str, edited: Any) -> None:
    check_one_layer(method, family, edited)


#: Largest distance that several layers leave behind norms; see `MultiLayerEditor`. PMET aims at the
#: last layer's MLP, which has no norm before it.
LEFT_BY_NORMS = 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_several_layers_write_what_was_wanted(family: str, edited: Any) -> None:
    found = edited("MEMIT", family, [1, 2])
    assert found["distance"].max() < (LEFT_BY_NORMS if family in NORMED else 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "bloom", "granite", "gemma3_text"])
@pytest.mark.parametrize("method", ["EMMET", "PMET", "AlphaEdit", "ENCORE", "NSE"])
def test_every_method_over_several_layers(method: str, family: str, edited: Any) -> None:
    found = edited(method, family, [0, 1, 2])
    close = family not in NORMED or method == "PMET"
    assert found["distance"].max() < (1e-2 if close else LEFT_BY_NORMS)


@pytest.mark.parametrize("family", ["gpt2", "granite", "gemma3_text"])
def test_in_bfloat16_rounding_alone_is_left(family: str, edited: Any) -> None:
    # 0.19 at most, with the oldest transformers that is allowed; 0.13 with the newest.
    assert edited("MEMIT", family, [2], torch.bfloat16)["distance"].max() < 0.2


# ---------------------------------------------------------------------------------- write paths


@pytest.mark.parametrize("family", CONFIGS)
def test_write_paths_are_found(family: str) -> None:
    model = structures.build(family)
    view = resolve(model)
    for number, path in find_write_paths(view, range(view.num_blocks)).items():
        assert path.block == view.block(number).name
        assert (path.norm is not None) == (family in NORMED)
        assert path.is_direct == (family in PLAIN)
        factors = {"granite": 0.22, "hyperclovax": 0.3, "minicpm3": 1.4 / view.num_blocks**0.5}
        assert path.scale == pytest.approx(factors.get(family, 1.0), abs=1e-3)


@pytest.mark.parametrize("family", ["granite", "gemma3_text", "opt"])
def test_changes_go_to_the_block_and_back(family: str) -> None:
    view = resolve(structures.build(family))
    path = find_write_paths(view, [1])[1]
    draw = torch.Generator().manual_seed(2)
    state = {}
    if path.norm is not None:
        inputs = torch.randn(3, HIDDEN, generator=draw, dtype=torch.float64)
        norm = view.model.get_submodule(path.norm.module)
        with torch.no_grad():
            outputs = norm(inputs.float()).double()
        state = {f"{path.norm.module}@input": inputs, f"{path.norm.module}@output": outputs}
    change = torch.randn(3, HIDDEN, generator=draw, dtype=torch.float64)
    at_block = path.to_block(change, state)
    if path.norm is not None:
        with torch.no_grad():
            moved = norm((inputs + change).float()).double()
        torch.testing.assert_close(at_block, moved - outputs, rtol=1e-3, atol=1e-4)
    back = path.from_block(at_block, state)
    # A norm forgets its input's length, so the change need not be the same, only its effect.
    torch.testing.assert_close(path.to_block(back, state), at_block, rtol=1e-4, atol=1e-4)


def test_what_is_no_norm_is_refused() -> None:
    model = structures.build("gemma3_text")
    block = model.model.layers[1]

    def squared(_: Any, args: Any, output: Any) -> Any:
        return output.square()

    handle = block.post_feedforward_layernorm.register_forward_hook(squared)
    try:
        with pytest.raises(ArchitectureError, match=r"at most one norm.*such as ROME or RROME"):
            find_write_paths(resolve(model), [1])
    finally:
        handle.remove()


def test_models_without_a_kv_cache_are_refused() -> None:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 97}
    config = AutoConfig.for_model("openai-gpt", n_embd=32, n_layer=3, n_head=4, n_positions=64)
    config.update(ids)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    editor = ROME(layers=[1], statistics="identity", **SEARCH).bind(model, TOKENIZER)
    with pytest.raises(ArchitectureError, match="has no KV cache"):
        editor.edit(encode_batch(TOKENIZER, REQUESTS))


def test_a_norm_of_large_weights_does_not_undo_an_edit(edited: Any) -> None:
    """As in Gemma 3, whose norm makes 411 of an MLP output of length 2.5.

    Taken for a vector at the MLP's output, a residual at the block's moved away by a factor of 30.
    """
    model = structures.build("gemma3_text")
    norms = [layer.post_feedforward_layernorm.weight for layer in model.model.layers]
    before = [norm.clone() for norm in norms]
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in norms:
            norm.copy_(100 * torch.exp(0.5 * torch.randn(norm.shape, generator=draw)))
    try:
        assert edited("MEMIT", "gemma3_text", [1])["distance"].max() < 1e-2
        assert edited("MEMIT", "gemma3_text", [0, 1, 2])["distance"].max() < LEFT_BY_NORMS
    finally:
        with torch.no_grad():
            for norm, value in zip(norms, before, strict=True):
                norm.copy_(value)


# ------------------------------------------------------------------------------------- warnings


def delta_of(distance: float, unwritten: float, nll: tuple[float, float, float]) -> Delta:
    before, searched, now = nll
    info = {
        "unwritten": [unwritten],
        "site_distance": [distance, 0.0],
        "nll_before": [before, 5.0],
        "nll_searched": [searched, 0.1],
        "nll_edited": [now, 0.1],
    }
    return Delta(("a", "b"), {}, info=info)


MISSED = "did not reach their targets"
ELSEWHERE = "are written, but moved the model elsewhere than the target search wanted"


@pytest.mark.parametrize(
    ("distance", "unwritten", "nll", "warned"),
    [
        (0.3, 0.0, (5.0, 0.1, 1.0), None),
        (3.4, 0.0, (5.0, 0.1, 6.0), MISSED),
        (float("nan"), 0.0, (5.0, 0.1, float("nan")), MISSED),
        (0.6, 0.0, (5.0, 0.1, 4.0), MISSED),
        (2.2, 0.0, (5.0, 0.1, 1.0), ELSEWHERE),
        (0.6, 0.5, (5.0, 0.1, 1.0), None),
        (0.3, 0.0, (5.0, 0.1, 5.1), MISSED),
        (0.3, 0.0, (0.2, 0.1, 0.3), None),
        (0.84, 0.85, (5.0, 0.1, 5.1), None),
    ],
)
def test_missed_edits_are_told_in_one_line(
    distance: float,
    unwritten: float,
    nll: tuple[float, float, float],
    warned: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    delta = delta_of(distance, unwritten, nll)
    with caplog.at_level(logging.WARNING):
        deltas = [delta, replace(delta, request_ids=("c", "d"))]
        EffectWarnings().check("MEMIT", deltas, "Do something else.")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (warned is not None)
    if warned:
        assert told[0].startswith(f"MEMIT: 2 of 4 edits {warned} (a, c)")
        assert told[0].endswith(" Do something else.")


@pytest.mark.parametrize(("steps", "told"), [(0, "have no target (a)"), (7, "ended before its")])
def test_outputs_that_are_not_finite_are_told_in_a_line_of_their_own(
    steps: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    delta = delta_of(0.0, 0.0, (math.nan if steps == 0 else 5.0, 0.1, math.nan))
    delta = replace(delta, info={**delta.info, "loss": [math.nan, 0.1], "steps": [steps, 9]})
    with caplog.at_level(logging.WARNING):
        EffectWarnings().check("MEMIT", [delta], "Do something else.")
    first, *more = caplog.messages
    assert told in first
    assert "not finite" in first
    assert "in float32 or bfloat16" in first
    assert bool(more) is (steps > 0)
    advice = MEMIT(150.0, layers=[0]).advice_on({"a"}, [delta])
    assert advice.startswith("Nothing was searched: the model's own outputs") is (steps == 0)
    if steps == 0:
        assert "raise" not in advice


def test_a_distance_that_is_no_number_has_not_arrived() -> None:
    now, before = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    assert math.isnan(site_distance(now, torch.tensor([[math.nan, 0.0]]), before)[0])
    assert site_distance(now, before, before) == [0.0]


def test_a_model_without_outputs_is_named_and_not_the_search(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = structures.build("gpt2")
    weight = model.transformer.ln_f.weight
    before = weight.clone()
    try:
        with torch.no_grad(), caplog.at_level(logging.WARNING):
            weight.fill_(3e38)
            editor = MEMIT(1.0, layers=[0], statistics="identity", **SEARCH)
            delta = editor.bind(model, TOKENIZER).edit(encode_batch(TOKENIZER, REQUESTS))
    finally:
        with torch.no_grad():
            weight.copy_(before)
    (told,) = caplog.messages
    assert told.startswith("MEMIT: 3 of 3 edits have no target (0, 1, 2)")
    assert delta.info["steps"] == [0, 0, 0]
    assert not any(math.isfinite(loss) for loss in delta.info["loss"])
    assert all(update.dense().norm() < 1e-4 for update in delta.weights.values())  # rounding


@pytest.mark.parametrize(
    ("editor", "told", "untold"),
    [
        (
            MEMIT(150.0, layers=[0, 1]),
            ("Edit fewer layers", "(moment_weight)", "such as RROME"),
            ("sweep",),
        ),
        (MEMIT(150.0, layers=[1]), ("Lower the weight",), ("fewer layers",)),
        (ROME(layers=[1]), ("Edit another layer",), ("fewer layers", "RROME", "weight of what")),
        (RROME(layers=[1], key="prompt"), ("Edit another layer",), ("key=",)),
    ],
)
def test_advice_is_of_what_the_method_has(
    editor: MEMIT | ROME | RROME, told: tuple[str, ...], untold: tuple[str, ...]
) -> None:
    text = editor.missed_advice()
    assert all(one in text for one in told)
    assert not any(one in text for one in untold)


def test_a_mean_key_is_named_where_it_is_one() -> None:
    editor = RROME(layers=[1])
    editor.templates = ["{}"]
    assert "mean key" not in editor.missed_advice()
    editor.templates = ["{}", "Then {}"]
    assert 'give key="prompt"' in editor.missed_advice()


@pytest.mark.parametrize(
    ("method", "nll", "helps"),
    [
        (MEMIT(150.0, layers=[0]), (5.0, 0.1, 4.9), "Lower the weight of what is preserved"),
        (MEMIT(150.0, layers=[0]), (5.0, 5.0, 5.0), "To write more with MEMIT"),  # nothing found
        (MEMIT(150.0, layers=[0]), (5.0, 2.0, 4.9), "To write more with MEMIT"),  # not enough
        (ROME(layers=[0]), (5.0, 0.1, 5.0), "Edit another layer"),
        (RECT(MEMIT(150.0, layers=[0])), (5.0, 0.1, 4.9), "Lower the weight of what"),
        (RECT(MEMIT(150.0, layers=[0])), (5.0, 5.0, 5.0), "To write more with RECT: raise kept"),
    ],
)
def test_a_stronger_search_is_advised_where_it_found_too_little(
    method: Any, nll: tuple[float, float, float], helps: str
) -> None:
    delta = delta_of(0.9, 0.0, nll)
    assert method.advice_on({"a"}, [delta]).startswith(helps)
    # Of a delta that was committed for other requests the figures are nobody's.
    others = [replace(delta, request_ids=("x",))]
    assert method.advice_on({"x"}, others) == method.advice_on({"x"}, [])


def test_rivals_that_are_no_requests_are_not_named() -> None:
    delta = delta_of(0.9, 0.0, (5.0, 0.1, 4.9))
    for other, told in ((1, True), (2, False), (None, False)):
        both = replace(delta, info={**delta.info, "rivals": [other, None]})
        said = MEMIT(150.0, layers=[0]).advice_on({"a"}, [both])
        assert ("nearly the key of another edit" in said) is told


def test_a_small_share_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    batch = encode_batch(TOKENIZER, REQUESTS)
    model = structures.build("gpt2")
    with caplog.at_level(logging.WARNING):
        editor = MEMIT(1e7, layers=[1], statistics="identity", **SEARCH).bind(model, TOKENIZER)
        for _ in range(2):
            editor.edit(batch)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("MEMIT writes 0 % of its residuals")
