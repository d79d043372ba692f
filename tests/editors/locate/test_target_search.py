"""The batched search that touches only what changes equals the plain one, on every family."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_edit.editors import KN, MEMIT
from lightning_edit.editors.locate.prompts import essence_texts, merge_watched, rewriting_texts
from lightning_edit.editors.locate.search_objective import Objective
from lightning_edit.editors.locate.target_search import _split_into_passes, search_targets
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ConfigError, SolveError
from lightning_edit.inference.suffix.build import build_suffix_forward, build_suffix_forwards
from lightning_edit.inference.suffix.forward import SuffixForward, texts_per_pass
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import resolve
from lightning_edit.types import EditBatch, EditRequest
from tests.editors.locate.plain import plain_target
from tests.models.tiny import TINY, break_token, build_tokenizer

DECODERS = sorted(set(TINY) - {"t5", "bart"})
TEMPLATES = ["{}", "Rome. {}", "The mother tongue of. {}"]
REQUESTS = [
    EditRequest("0", "The capital of France is", "Rome", "France"),
    EditRequest("1", "Lyon lies in", "Italy too", "Lyon"),
    EditRequest(
        "2", "What is the mother tongue of Danielle Darrieux?", "Paris", "Danielle Darrieux"
    ),
    EditRequest("3", "A", "Rome", "A"),
]
OBJECTIVE = Objective(
    steps=6, lr=0.5, kl_factor=0.0625, weight_decay=0.5, clamp=2.0, threshold=0.05
)


def material(
    tokenizer: Any, position: str
) -> tuple[EditBatch, list[TokenizedText], list[TokenizedText]]:
    batch = encode_batch(tokenizer, REQUESTS)
    return (
        batch,
        rewriting_texts(tokenizer, batch, TEMPLATES),
        essence_texts(tokenizer, batch, position),
    )


#: Learned and rotary positions, tuples, flattened MLPs, sliding windows; the rest is run as slow.
QUICK = {"gptj", "opt", "gemma2"}
FAMILIES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DECODERS
]


@pytest.mark.parametrize("site", ["mlp", "block", "attention+mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_plain_search(family: str, site: str) -> None:
    view = resolve(TINY[family]().requires_grad_(False))
    tokenizer = build_tokenizer(bos=family in {"llama", "gemma2"})
    _, texts, watched = material(tokenizer, "subject_last")
    found = search_targets(view, merge_watched(texts, watched), 1, site, OBJECTIVE, 512)
    for number, wanted in enumerate(found.wanted):
        own = [text for text in texts if text.request == number]
        plain = plain_target(view, own, watched[number], 1, site, OBJECTIVE)
        assert (wanted - plain).norm() < 1e-4 * plain.norm()


@pytest.mark.parametrize(("site", "block"), [("mlp", 1), ("block", 0)])
def test_a_request_that_the_model_breaks_at_leaves_the_others(site: str, block: int) -> None:
    view = resolve(TINY["gpt2"]().requires_grad_(False))
    _, texts, watched = material(build_tokenizer(), "subject_last")
    merged = merge_watched(texts, watched)
    sound = search_targets(view, merged, block, site, OBJECTIVE, 512)
    own = {token for text in merged if text.request == 1 for token in text.ids}
    (token, *_) = sorted(own.difference(*(text.ids for text in merged if text.request != 1)))
    break_token(view.model, token)
    found = search_targets(resolve(view.model), merged, block, site, OBJECTIVE, 512)
    assert [math.isfinite(loss) for loss in found.losses] == [True, False, True, True]
    assert found.steps == [5, 0, 5, 5]
    for number in (0, 2, 3):
        assert found.losses[number] == pytest.approx(sound.losses[number], abs=1e-4)
        difference = found.wanted[number] - sound.wanted[number]
        assert difference.norm() < 1e-4 * sound.wanted[number].norm()


EASY = replace(OBJECTIVE, steps=14, lr=0.2, clamp=20.0, threshold=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["subject_last", "prompt_end"])
@pytest.mark.parametrize(("site", "block"), [("mlp", 0), ("block", 0), ("mlp", 1)])
def test_requests_leave_when_they_are_done(site: str, block: int, position: str) -> None:
    view = resolve(TINY["gpt2"]().requires_grad_(False))
    _, texts, watched = material(build_tokenizer(), position)
    merged = merge_watched(texts, watched)
    # A random model says nothing with certainty; half of the requests reach this loss.
    median = sorted(search_targets(view, merged, block, site, EASY, 512).losses)[1]
    easy = replace(EASY, threshold=median + 1e-3)
    together = search_targets(view, merged, block, site, easy, 512)
    apart = search_targets(view, merged, block, site, easy, 1)
    assert len(set(together.steps)) > 1
    assert together.steps == apart.steps
    assert (together.delta - apart.delta).norm() < 1e-4 * apart.delta.norm()
    for number, wanted in enumerate(together.wanted):
        own = [text for text in texts if text.request == number]
        plain = plain_target(view, own, watched[number], block, site, easy)
        assert (wanted - plain).norm() < 1e-3 * plain.norm()


def broken_from(step: int, one: int) -> Any:
    """A loss of the first answer token that is NaN for one request, from a step on."""

    def loss_for(texts: list[TokenizedText]) -> Any:
        calls = [0]

        def loss(suffix: SuffixForward, now: list[TokenizedText], logits: Tensor) -> Tensor:
            requests = list(dict.fromkeys(text.request for text in now))
            ids, place = [], 0
            for request in requests:
                answer = next(text.answer for text in now if text.request == request)
                ids.append(-logits.log_softmax(-1)[place, answer[0]])
                place += sum(len(text.answer) for text in now if text.request == request)
            found = torch.stack(ids)
            if calls[0] >= step and one in requests:
                found = found * torch.where(torch.tensor(requests) == one, torch.nan, 1.0)
            calls[0] += 1
            return found

        return loss

    return loss_for


@pytest.mark.parametrize("step", [0, 1, 3, 5])
def test_a_loss_that_is_not_finite_leaves_the_last_vector_that_had_one(step: int) -> None:
    view = resolve(TINY["gpt2"]().requires_grad_(False))
    _, texts, _ = material(build_tokenizer(), "subject_last")
    rule = replace(OBJECTIVE, threshold=0.0)
    found = search_targets(view, texts, 1, "mlp", rule, 512, broken_from(step, 1))
    whole = search_targets(view, texts, 1, "mlp", rule, 512, broken_from(99, 1))
    others = [0, 2, 3]
    assert torch.allclose(found.delta[others], whole.delta[others], rtol=1e-4, atol=1e-6)
    assert [math.isfinite(loss) for loss in found.losses] == [True, False, True, True]
    assert found.steps == [5, step, 5, 5]
    if step == 0:
        assert not found.delta[1].any()
        return
    shorter = replace(rule, steps=step)
    last = search_targets(view, texts, 1, "mlp", shorter, 512, broken_from(99, 1))
    assert torch.allclose(found.delta[1], last.delta[1], rtol=1e-4, atol=1e-6)
    assert found.nll[1] == pytest.approx(last.nll[1], rel=1e-4)
    assert found.nll_before[1] == pytest.approx(last.nll_before[1], rel=1e-4)


@pytest.mark.parametrize("site", ["mlp", "block", "attention+mlp"])
@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_site_whose_output_has_no_length_is_named(site: Any, value: float) -> None:
    model = TINY["llama"]().requires_grad_(False)
    block = model.model.layers[1]
    for each in (block.mlp.down_proj, block.self_attn.o_proj, model.model.embed_tokens):
        if each is not block.mlp.down_proj and (site == "mlp" or value):
            continue
        each.weight.fill_(value)
    if site == "block" and not value:
        model.model.layers[0].mlp.down_proj.weight.fill_(0.0)
        model.model.layers[0].self_attn.o_proj.weight.fill_(0.0)
    _, texts, _ = material(build_tokenizer(bos=True), "subject_last")
    if value:  # each request is broken, and ends by its loss
        found = search_targets(resolve(model), texts, 1, site, OBJECTIVE, 512)
        assert all(map(math.isnan, found.losses))
        assert found.steps == [0] * 4
        assert not found.delta.any()
        return
    with pytest.raises(SolveError, match=r"4 of 4 requests .*layers\.1.* of the norm .*0,"):
        search_targets(resolve(model), texts, 1, site, OBJECTIVE, 512)


def test_a_watched_beginning_is_not_computed_twice() -> None:
    _, texts, watched = material(build_tokenizer(), "subject_last")
    merged = merge_watched(texts, watched)
    # Requests 1 and 3 begin with their subject, so their bare prompt holds what is watched.
    assert len(merged) == len(texts) + 2
    assert sum(text.watch is not None for text in merged) == len(REQUESTS)


def test_impossible_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="steps >= 1"):
        Objective(0, 0.5, 0.0, 0.0, 1.0, 0.05)


@pytest.mark.parametrize("editor", [KN, MEMIT])
def test_passes_without_texts_are_refused(editor: Any) -> None:
    with pytest.raises(ValueError, match="expected 1 or more, got 0"):
        editor(rows_per_pass=0)


def test_an_editor_needs_layers() -> None:
    model = TINY["gpt2"]().requires_grad_(False)
    with pytest.raises(ConfigError, match="MEMIT got no layers; give some"):
        MEMIT(layers=[], statistics="identity").bind(model, build_tokenizer())


@pytest.mark.parametrize(
    ("rows", "sizes"), [(100, [10]), (9, [4, 6]), (4, [4, 4, 2]), (1, 5 * [2])]
)
def test_requests_are_parted_evenly_and_stay_whole(rows: int, sizes: list[int]) -> None:
    texts = [TokenizedText(number // 2, tuple(range(3 + number // 2)), 0) for number in range(10)]
    groups = list(_split_into_passes(texts, rows))
    assert sorted(map(len, groups)) == sorted(sizes)
    assert all(len(group) % 2 == 0 for group in groups)
    assert sorted(text.request for group in groups for text in group) == [n // 2 for n in range(10)]


def test_in_front_of_the_first_attention_only_what_changes_runs() -> None:
    view = resolve(TINY["llama"]().requires_grad_(False))
    _, texts, _ = material(build_tokenizer(bos=True), "subject_last")
    tail = build_suffix_forward(view, texts, 0, "block")
    nothing = torch.empty(0, dtype=torch.long)
    added = torch.randn(2, len(texts), tail.initial.shape[1])
    seen: list[int] = []
    layer = view.model.get_submodule(view.block(1).attention_out.replace("o_proj", "k_proj"))
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
        places = torch.arange(len(texts)), torch.zeros(len(texts), dtype=torch.long)
        first = [tail.logits(one, *places) for one in added]
        again = [tail.logits(one, *places) for one in added]
        some = tail.select(torch.tensor([3, 1]))
        few = some.logits(added[0, [3, 1]], torch.arange(2), places[1][:2])
        tail.select(torch.tensor([0])).logits(added[0, :1], nothing, nothing)
        handle.remove()
    tokens = tail.inputs["input_ids"].shape[1]
    assert tokens > len(texts)
    assert seen == [tokens, *3 * [len(texts)], 2, 1]
    torch.testing.assert_close(again, first)
    torch.testing.assert_close(few, first[0][[3, 1]])


def test_several_blocks_read_the_tokens_before_the_subject_once() -> None:
    view = resolve(TINY["llama"]().requires_grad_(False))
    _, texts, _ = material(build_tokenizer(bos=True), "subject_last")
    blocks, read = [2, 0, 1], [0]
    places = torch.arange(len(texts)), torch.zeros(len(texts), dtype=torch.long)

    def logits(tail: SuffixForward) -> Tensor:
        return tail.logits(torch.full_like(tail.initial, 0.5), *places)

    def count(module: nn.Module, inputs: tuple[Tensor]) -> None:
        read[0] += inputs[0].numel()

    with torch.no_grad(), view.embeddings.register_forward_pre_hook(count):
        alone = [logits(build_suffix_forward(view, texts, block, "mlp")) for block in blocks]
        apart, read[0] = read[0], 0
        together = [logits(tail) for tail in build_suffix_forwards(view, texts, blocks, "mlp")]
    before = {text.ids[: text.subject] for text in texts}
    shared = len({prefix[:n] for prefix in before for n in range(1, len(prefix) + 1)})
    assert apart - read[0] >= (len(blocks) - 1) * shared
    assert all(map(torch.equal, together, alone))


@pytest.mark.parametrize("packed", [True, False])
def test_subjects_that_begin_their_texts_need_no_tokens_before(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention that cannot be replaced has padded rows, also where nothing is read before."""
    if not packed:
        monkeypatch.setattr("lightning_edit.inference.packed.forward.packable", lambda _: False)
    view = resolve(TINY["llama"]().requires_grad_(False))
    texts = [TokenizedText(number, (5 + number, 6, 7), 0) for number in range(3)]
    every, zero = torch.arange(3), torch.zeros(3, dtype=torch.long)
    nothing = torch.zeros(3, view.hidden_size)
    with torch.no_grad():
        found = build_suffix_forward(view, texts, 0, "block").logits(nothing, every, zero)
        whole = view.model(torch.tensor([text.ids for text in texts])).logits[:, 0]
    torch.testing.assert_close(found, whole)


@pytest.mark.parametrize(
    ("sizes", "texts"),
    [
        ((576, 1536, 30, 9), 104),  # SmolLM2-135M
        ((768, 3072, 12, 12), 151),  # GPT-2 small
        ((4096, 14336, 32, 32), 32),  # Llama 3 8B
        ((32, 48, 3, 4), 448),
    ],
)
def test_the_model_says_how_many_texts_a_pass_takes(
    sizes: tuple[int, int, int, int], texts: int
) -> None:
    hidden, inner, blocks, heads = sizes
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=97,
    )
    with torch.device("meta"):
        view = resolve(LlamaForCausalLM(config))
    assert texts_per_pass(view) == texts
