"""Settings by rule of memory editors follow the scale of the model's own states."""

from functools import partial
from typing import Any

import pytest
import torch

from lightning_edit.editors import GRACE, MELO, MEMOIR, WISE
from lightning_edit.editors.memory import grace, melo, wise
from lightning_edit.editors.memory.base import neutral_keys
from lightning_edit.editors.memory.neutral_texts import NEUTRAL_TEXTS, SAME_WORDS
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ArchitectureError, SolveError
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tiny, build_tokenizer

FACTS = [
    EditRequest("a", "The capital of France is", "Lyon", "France"),
    EditRequest("b", "Marseille lies in", "capital", "Marseille"),
]


def bound(editor: Any, kind: str, scale: float = 1.0) -> Any:
    """Bind an editor to a model whose middle block computes with inputs of another scale."""
    model = build_tiny(kind)
    with torch.no_grad():
        block = editor.bind(model, build_tokenizer(bos=True)).view.block(1)
        model.get_parameter(f"{block.mlp_up[-1]}.weight").mul_(scale)
        model.get_parameter(f"{block.mlp_down}.weight").div_(scale)
    return editor.bind(model, build_tokenizer(bos=True))


def one(editor: Any, fact: EditRequest = FACTS[0]) -> Any:
    return editor.edit(encode_batch(editor.prompts, [fact]))


def test_wordings_are_the_neutral_texts() -> None:
    assert sorted(text for group in SAME_WORDS for text in group) == sorted(NEUTRAL_TEXTS)
    assert all(len({text.split()[-1] for text in group}) == 1 for group in SAME_WORDS)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_radius_is_a_share_of_the_distance_between_subjects(kind: str) -> None:
    # The last of two projections into a gated network is not behind the nonlinearity, so its scale
    # is that of the keys.
    radii = []
    for scale in (1.0, 50.0):
        editor = bound(GRACE(layer=1, steps=1), kind, scale)
        delta = one(editor)
        keys = neutral_keys(editor.prompts, partial(editor._read_last, side="input"))
        pairs = torch.stack([torch.pdist(group) for group in keys.double()])
        expected = grace.RADIUS_SHARE * float(pairs.median())
        assert float(delta.state["radius"]) == pytest.approx(expected, rel=1e-4)
        assert editor.chosen["radius"] == pytest.approx(expected, rel=1e-4)
        radii.append(expected)
    assert radii[1] == pytest.approx(50 * radii[0], rel=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_keys_of_a_batch_are_those_of_single_prompts(kind: str) -> None:
    editor = GRACE(layer=1).bind(build_tiny(kind), build_tokenizer(bos=True, eos=True))
    batch = encode_batch(editor.prompts, FACTS)
    keys = editor._read_last([item.prompt_ids for item in batch.encoded], "input")
    for key, item in zip(keys, batch.encoded, strict=True):
        assert torch.allclose(key, editor._read(item)[0], atol=1e-5)


def test_a_codebook_takes_the_radius_of_its_edits() -> None:
    editor = bound(GRACE(layer=1, steps=1), "llama")
    memory = editor.memory_of([one(editor)])
    assert memory.balls[0].radius == pytest.approx(editor.chosen["radius"])
    given = bound(GRACE(layer=1, steps=1, radius=0.25), "llama")
    assert given.memory_of([one(given)]).balls[0].radius == 0.25
    assert given.chosen == {}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_melos_first_step_takes_its_share_of_the_loss(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(melo, "STEP_REACH", 1e-3)
    losses = []
    for steps in (1, 2):
        editor = bound(MELO(0, layers=[1, 2], steps=steps), kind)
        losses.append(editor.edit(encode_batch(editor.prompts, FACTS)).info["loss"])
    assert (losses[0] - losses[1]) / losses[0] == pytest.approx(1e-3, rel=0.15)


def test_melos_index_lies_below_its_blocks_whether_these_are_given_or_not() -> None:
    """`tune` and `sweep` give the blocks alone."""
    model, tokenizer = build_tiny("llama"), build_tokenizer(bos=True)
    count = MELO(0, layers=[1]).bind(model, tokenizer).view.num_blocks
    own, named = MELO(), MELO(layers=MELO.layers_for_null(count))
    for editor in (own, named):
        editor.bind(model, tokenizer)
        assert [editor.index_block, *editor.lora_layers] == MELO.default_layers(count)
    assert MELO(layers=[2]).bind(model, tokenizer).index_block == 1
    with pytest.raises(ArchitectureError, match="index is in block 0 and LoRA in \\[0\\]"):
        MELO(layers=[0]).bind(model, tokenizer)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("method", [GRACE, MELO])
def test_facts_are_written_whatever_the_scale_of_inputs(method: Any, kind: str) -> None:
    arguments: dict[Any, dict[str, Any]] = {
        GRACE: {"layer": 1, "steps": 40},
        MELO: {"index_layer": 1, "layers": [2], "rank": 8, "steps": 40},
    }
    for scale in (0.02, 50.0):
        editor = bound(method(**arguments[method]), kind, scale)
        handle = EditedModel(editor)
        handle.edit(FACTS[:1])
        answer = handle.generate(FACTS[0].prompt, max_new_tokens=6)
        assert answer.strip().startswith("Lyon"), (method, scale, answer)


def test_wises_step_adds_a_share_of_the_output_to_an_activation() -> None:
    rates = []
    for scale in (1.0, 50.0):
        editor = bound(WISE(1, steps=1, templates=["{}"], density=1.0), "llama", scale)
        one(editor)
        inputs, outputs = editor._neutral_norms()
        weight = wise.MARGIN_UNIT / outputs  # of the margin loss, beside the answer's
        added = weight * editor.chosen["lr"] * inputs**2
        assert added == pytest.approx(wise.STEP_REACH * outputs, rel=1e-5)
        rates.append(editor.chosen["lr"])
    assert rates[0] == pytest.approx(2500 * rates[1], rel=1e-3)


@pytest.mark.parametrize("method", [GRACE, WISE, MELO, MEMOIR])
def test_what_is_no_rate_is_refused(method: Any) -> None:
    with pytest.raises(ValueError, match="lr"):
        method(lr=0.0)


def test_a_rate_as_a_number_keeps_the_published_margin_loss_and_constraint() -> None:
    """`configs/method/atlas/WISE.yaml` gives one, and its tables were measured so."""
    given = bound(WISE(1, lr=0.1), "llama")
    assert given._margin_weight() == 1.0
    assert given._largest_change() == 1.0
    ruled = bound(WISE(1), "llama")
    assert ruled._margin_weight() == pytest.approx(wise.MARGIN_UNIT / ruled._neutral_norms()[1])


@pytest.mark.parametrize("method", [WISE, MEMOIR, GRACE])
def test_a_projection_that_returns_nothing_is_no_unit(method: Any) -> None:
    editor = bound(GRACE(1) if method is GRACE else method(1, templates=["{}"]), "llama")
    with torch.no_grad():
        name = editor.view.block(1).mlp_down
        editor.language_model.get_parameter(f"{name}.weight").zero_()
    with pytest.raises(SolveError, match="give lr as a number"):
        one(editor)
