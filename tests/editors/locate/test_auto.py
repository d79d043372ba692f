"""`auto` settings of locate-then-edit methods: what they are on a model, and what they achieve."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import D4S, ENCORE, MEMIT, NSE, PMET, AlphaEdit
from lightning_edit.editors.locate.edited_layer import EditedLayer
from lightning_edit.editors.locate.prompts import essence_texts, merge_watched, rewriting_texts
from lightning_edit.editors.locate.search_objective import (
    DECAY,
    STEPS_TO_BOUND,
    EarlyStopping,
    Objective,
)
from lightning_edit.editors.locate.solver import LeastSquares
from lightning_edit.editors.locate.target_search import search_targets
from lightning_edit.editors.locate.targets import Targets, part_norms
from lightning_edit.editors.locate.widening import REACHED, at_bound, search_widening
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.view import resolve
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.statistics.collect import collect
from lightning_edit.types import EditRequest
from tests.models.tiny import INNER, TINY, build_tiny, build_tokenizer
from tests.toy import ToyData, toy_model, toy_tokenizer

FACTS = [
    EditRequest("0", "The capital of France is", "Rome", "France"),
    EditRequest("1", "Lyon lies in", "Italy", "Lyon"),
    EditRequest("2", "The mother tongue of Danielle Darrieux is", "Paris", "Danielle Darrieux"),
]
TEXTS = ["The capital of France is Rome.", "Lyon lies in Italy too.", "Danielle Darrieux, Paris"]


@pytest.mark.parametrize("editor", [MEMIT, PMET, ENCORE, NSE, D4S])
def test_the_moments_weight_is_a_ninth_of_the_width(editor: Any) -> None:
    bound = editor(layers=[0, 1], statistics="identity").bind(TINY["llama"](), build_tokenizer())
    assert bound.chosen["moment_weight"] == [pytest.approx(INNER / 9)] * 2
    more = {"norm_weight": 0.0} if editor is ENCORE else {}
    own = editor(20.0, layers=[0, 1], statistics="identity", clamp=0.75, **more)
    beside = {"scale": 1.0} if editor is D4S else {}  # as published
    assert own.bind(TINY["llama"](), build_tokenizer()).chosen == beside


@pytest.mark.parametrize("layers", [[0], [0, 1]])
def test_the_layers_of_d4s_write_the_searched_vector_once(layers: list[int]) -> None:
    given: Any = {"layers": layers, "statistics": "identity"}
    bound = D4S(**given).bind(TINY["llama"](), build_tokenizer())
    written = sum(bound.share_of_searched / left for left in range(1, len(layers) + 1))
    assert written == pytest.approx(1.0)
    assert bound.chosen["scale"] == bound.share_of_searched
    assert D4S(scale=0.3, **given).bind(TINY["llama"](), build_tokenizer()).share_of_searched == 0.3
    assert D4S.default_layers(30) == MEMIT.default_layers(30)[-2:]
    with pytest.raises(ValueError, match="scale multiplies the residual"):
        D4S(scale=0.0)


def test_d4s_solves_for_a_scaled_residual() -> None:
    given: Any = {"layers": [0, 1], "statistics": "identity", "context_templates": ["{}"]}
    found = []
    for scale in (1.0, 0.25):
        editor = D4S(20.0, scale=scale, **given).bind(TINY["llama"](), build_tokenizer())
        found.append(editor.edit(encode_batch(editor.prompts, FACTS)))
    for layer in (0, 1):
        whole, part = (delta.history[f"residuals/{layer}"] for delta in found)
        assert torch.allclose(part, 0.25 * whole, atol=1e-6)
    other = D4S(20.0, **{**given, "layers": [1]}).bind(TINY["llama"](), build_tokenizer())
    ledger = Ledger(other.language_model, other)
    with pytest.raises(ConfigError, match=r"solved jointly in layers \[0, 1\].*edits \[1\]"):
        ledger.commit(found[0], FACTS)


def with_statistics(folder: Path, scale: float) -> str:
    """Return a file with statistics of keys that are ``scale`` times as long."""
    model, tokenizer = TINY["llama"](), build_tokenizer()
    found = collect(model, tokenizer, TEXTS * 20, [1], 400)
    matrices = {name: matrix * scale**2 for name, matrix in found.matrices.items()}
    path = folder / f"moments-{scale}.safetensors"
    replace(found, matrices=matrices).save(path)
    return str(path)


def test_alphaedits_null_space_and_weight_follow_the_scale(tmp_path: Path) -> None:
    layers = []
    for scale in (1e-2, 1.0, 1e2):
        statistics = with_statistics(tmp_path, scale)
        given: Any = {"layers": [1], "statistics": statistics, "context_templates": ["{}"]}
        editor = AlphaEdit(**given)
        editor.bind(TINY["llama"](), build_tokenizer())
        (layer,) = editor.bound_layers.values()
        assert editor.chosen["norm_weight"] == [pytest.approx((layer.null_energy or 0) / 9)]
        layers.append(layer)
        # The number that is told gives the same directions.
        same = AlphaEdit(null_threshold=editor.chosen["null_threshold"][0], **given)
        (again,) = same.bind(TINY["llama"](), build_tokenizer()).bound_layers.values()
        assert again.null_space.shape == layer.null_space.shape
    spaces = [layer.null_space for layer in layers]
    assert 0 < spaces[0].shape[1] < INNER
    assert spaces[0].shape == spaces[1].shape == spaces[2].shape
    small, middle, large = (layer.null_energy for layer in layers)
    assert middle == pytest.approx(small * 1e4)
    assert large == pytest.approx(middle * 1e4)


def test_encores_norm_weight_is_a_ninth_of_the_preserved_mean(tmp_path: Path) -> None:
    for scale in (1e-2, 1.0, 1e2):
        statistics = with_statistics(tmp_path, scale)
        editor = ENCORE(layers=[1], statistics=statistics, context_templates=["{}"])
        editor.bind(TINY["llama"](), build_tokenizer())
        (layer,) = editor.bound_layers.values()
        assert layer.moment is not None
        mean = float(torch.linalg.eigvalsh(layer.moment.double()).mean())
        assert editor.chosen["norm_weight"] == [pytest.approx(INNER / 9 * mean / 9, rel=1e-4)]
        (system,) = [editor.solver.preserved(layer)]
        total = INNER / 9 * layer.moment.double()
        total.diagonal().add_(editor.chosen["norm_weight"][0])
        assert torch.allclose(system.factor @ system.factor.mT, total, rtol=1e-6, atol=0)


def test_a_typical_key_of_the_null_space_is_written_to_nine_tenths() -> None:
    keys = torch.randn(300, INNER, generator=torch.Generator().manual_seed(0)).double()
    model = TINY["llama"]()
    name = resolve(model).parameter(0)
    basis = torch.eye(INNER).double()[:, :8]
    energy = float((keys @ basis).square().sum(1).mean())
    layer = EditedLayer(0, name, model, torch.eye(INNER), null_space=basis, null_energy=energy)
    solver = LeastSquares(moment_weight=0.0, norm_weight="auto")
    key = keys[0] * (energy / (keys[0] @ basis).square().sum()).sqrt()
    solution = solver.solve(layer, key[:, None], torch.ones(32, 1).double())
    assert solution.unwritten == pytest.approx(0.1)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_search_says_its_bound_and_rate_behind_a_norm_too(family: str) -> None:
    editor = MEMIT(layers=[0, 1], statistics="identity", steps=2, context_templates=["{}"])
    editor.bind(build_tiny(family), build_tokenizer(bos=True))
    info = editor.edit(encode_batch(editor.prompts, FACTS[:1])).info
    assert {"clamp", "lr", "weight_decay", "moment_weight"} <= set(info["auto"])


def test_what_auto_chose_is_in_the_runs_results(tmp_path: Path) -> None:
    editor = MEMIT(layers=[0], statistics="identity", context_templates=["{}"], steps=2)
    editor.bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, enable_progress_bar=False)
    trainer.edit(editor, ToyData(2), protocol="batch", run=str(tmp_path / "run"), modes=("tf",))
    described = json.loads((tmp_path / "run/results.json").read_text())["editor"]
    assert described["args"]["moment_weight"] == "auto"
    (weight,) = described["auto"]["moment_weight"]
    assert weight == pytest.approx(editor.bound_layers[0].width / 9)
    assert described["auto"]["clamp"] in (0.75, 1.5, 3.0, 6.0)


# ----------------------------------------------------------------------------------- the bound

OBJECTIVE = Objective(
    steps=8, lr=0.5, kl_factor=0.0625, weight_decay=0.0, clamp=0.1, threshold=0.05
)


def searched(site: str, family: str = "gpt2") -> tuple[Targets, Targets, float, list[float]]:
    view = resolve(build_tiny(family).requires_grad_(False))
    tokenizer = build_tokenizer()
    batch = encode_batch(tokenizer, FACTS)
    texts = merge_watched(
        rewriting_texts(tokenizer, batch, ["{}"]), essence_texts(tokenizer, batch, "subject_last")
    )
    bounds: list[float] = []

    def search(some: Any, objective: Objective) -> Targets:
        bounds.append(objective.clamp)
        behind = family == "gemma3_text"  # whose MLP's output goes through a norm
        at: Any = site
        return search_targets(view, some, 1, at, objective, 512, through_mlp=behind)

    plain = search(texts, OBJECTIVE)
    bounds.clear()
    wide, widest = search_widening(search, texts, OBJECTIVE, most=0.8)
    return plain, wide, widest, bounds


@pytest.mark.parametrize(
    ("site", "family"), [("block", "gpt2"), ("attention+mlp", "gpt2"), ("block", "gemma3_text")]
)
def test_a_bound_in_the_way_is_widened(site: str, family: str) -> None:
    plain, wide, widest, bounds = searched(site, family)
    assert min(plain.nll) > REACHED
    assert bool(at_bound(plain, 0.1).all())
    assert bounds == [0.1, 0.2, 0.4, 0.8]
    assert widest == 0.8
    assert all(new < old for new, old in zip(wide.nll, plain.nll, strict=True))
    assert wide.nll_before == pytest.approx(plain.nll_before)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("site", ["block", "mlp", "attention+mlp"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_search_by_rule_steps_in_units_of_its_bound(family: str, site: Any, scale: float) -> None:
    """Whatever the scale of the states, the first step is a quarter of the bound."""
    model = TINY[family]().requires_grad_(False)
    view = resolve(model)
    for block in range(view.num_blocks):
        model.get_parameter(view.parameter(block)).mul_(scale)
    batch = encode_batch(build_tokenizer(), FACTS)
    texts = rewriting_texts(build_tokenizer(), batch, ["{}"])
    rule = replace(OBJECTIVE, lr="auto", weight_decay="auto", clamp=0.5, threshold=-1.0)
    parts = 2 if site == "attention+mlp" else 1
    lengths = {}
    for steps in (2, 8):
        found = search_targets(view, texts, 1, site, replace(rule, steps=steps), 512)
        moved = found.delta.reshape(len(FACTS), parts, -1).norm(dim=2)
        lengths[steps] = moved / (0.5 * part_norms(found.initial, parts))
    assert lengths[2] == pytest.approx(1 / STEPS_TO_BOUND, rel=0.02)
    assert float(lengths[8].max()) == pytest.approx(1)


def test_a_bound_given_as_a_number_keeps_the_authors_rate_and_decay() -> None:
    assert (MEMIT().objective.lr, MEMIT().objective.weight_decay) == ("auto", "auto")
    for editor, rate in ((MEMIT(clamp=0.75), 0.5), (PMET(clamp=0.75), 0.2)):
        assert (editor.objective.lr, editor.objective.weight_decay) == (rate, 0.5)
    own = MEMIT(lr=0.1, weight_decay=1e-3).objective
    assert (own.lr, own.weight_decay) == (0.1, 1e-3)


def test_the_penalty_by_rule_is_that_of_a_share_of_the_state() -> None:
    rule = replace(OBJECTIVE, weight_decay="auto")
    lengths = torch.tensor([[3.0], [300.0]])
    assert rule.decay(lengths, 2 * lengths).tolist() == pytest.approx([DECAY / 2] * 2)
    given = replace(OBJECTIVE, weight_decay=0.5)
    assert given.decay(lengths, 2 * lengths)[0] == pytest.approx(0.5 * 3 / 36)


def test_only_the_requests_in_need_are_searched_again() -> None:
    """Others keep their vectors to the bit, and lines stay with their requests."""
    batch = encode_batch(build_tokenizer(), FACTS)
    texts = rewriting_texts(build_tokenizer(), batch, ["{}"])
    asked: list[list[int]] = []
    passes: list[int] = []
    # The second request gets worse with a wider bound, and keeps what it had.
    done = REACHED / 2
    nll = {1.0: [done, 3.0, 3.0], 2.0: [4.0, 1.0], 4.0: [4.0, done]}

    def search(some: Any, objective: Objective) -> Targets:
        numbers = [text.request for text in some]
        asked.append(numbers)
        delta = torch.tensor([[objective.clamp * (10.0 + n)] for n in numbers])
        found = nll[objective.clamp]
        initial = torch.tensor([[10.0 + n] for n in numbers])
        count = len(numbers)
        empty = [torch.zeros(1, 1)] * count
        zeros = [0.0] * count
        passes.append(objective.steps)
        steps = [objective.steps - 1] * count
        lengths, norms = delta.abs(), initial.abs()
        return Targets(delta, initial, empty, empty, zeros, steps, found, zeros, lengths, norms)

    nll[8.0] = [4.0]
    found, widest = search_widening(search, texts, replace(OBJECTIVE, clamp=1.0), most=8.0)
    assert asked == [[0, 1, 2], [1, 2], [1, 2], [1]]
    assert passes == [8, 12, 18, 27]
    assert found.nll == [done, 3.0, done]
    assert found.delta[:, 0].tolist() == [10.0, 11.0, 48.0]
    assert widest == 8.0


def test_a_search_that_its_own_rule_ended_is_not_repeated() -> None:
    plain, _, _, _ = searched("block")
    early = replace(OBJECTIVE, early_stopping=EarlyStopping(patience=1))
    done = replace(plain, steps=[3] * len(plain.steps))
    asked: list[float] = []

    def search(some: Any, objective: Objective) -> Targets:
        asked.append(objective.clamp)
        return done

    batch = encode_batch(build_tokenizer(), FACTS)
    found, _ = search_widening(search, rewriting_texts(build_tokenizer(), batch, ["{}"]), early)
    assert asked == [0.1]
    assert found is done
