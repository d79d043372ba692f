"""Knowledge neurons: parity with published code, and attributions against finite differences."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lightning_edit.editors.neurons import kn
from lightning_edit.editors.neurons.kn import FIRST_ADD, KN
from lightning_edit.editors.neurons.suffix_passes import integrated_gradients_by_suffixes
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import NotFiniteError, SolveError
from lightning_edit.functional.attribution import path_points, shared_neurons
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weight
from lightning_edit.types import EditRequest
from tests.editors.golden import golden, model, relative, tokenizer
from tests.models.tiny import TINY, break_token, build_tokenizer


# Ten edits leave a model whose continuations are no whole characters: tokens that are found behind
# the ids of those before, and not behind their text, make 13 of 512 neurons come out differently.
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["single", "seq10"])
def test_deltas_agree_with_the_port(mode: str) -> None:
    example = golden(f"EasyEdit-KN/tiny-gpt2/{mode}")
    hparams = example.meta["hparams"]
    editor = KN(
        steps=hparams["steps"],
        threshold=hparams["adaptive_threshold"],
        share=hparams["p"],
        fewest=0,
        most=10**6,
        subtract=1.0,
        add=1.0,
        rescale=False,
        variant="easyedit",
        context_templates=[],
    )
    editor.bind(model(example.model_name), tokenizer(example.model_name))
    ledger = Ledger(editor.language_model, editor)
    olds = [record["target_true"]["str"] for record in example.meta["requests_full"]]
    for request, old in zip(example.requests, olds, strict=True):
        part = encode_batch(editor.tokenizer, [replace(request, old_target=old)])
        ledger.commit(editor.edit(part), part.requests)
    found = {name: ledger.touched[name].total for name in ledger.update_norms()}
    assert {f"delta.{name}" for name in found} == set(example.tensors)
    for name, total in found.items():
        assert relative(total, example.tensors[f"delta.{name}"].mT) < 1e-5


def bound(family: str = "llama", **arguments: object) -> KN:
    editor = KN(context_templates=[], **arguments)  # type: ignore[arg-type]
    editor.bind(TINY[family]().requires_grad_(False).double(), build_tokenizer(bos=True))
    return editor


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_attributions_add_up_to_the_change_of_the_probability(family: str) -> None:
    # Integrated gradients are complete: over a layer they sum to P(all) - P(none).
    editor = bound(family, steps=400)
    ids = tuple(editor.tokenizer("The capital of France is")["input_ids"])
    place = (ids, (5,))
    scores = editor.attributions([[place]])[0].sum(1)
    inputs = torch.tensor([ids])
    full = editor.language_model(inputs).logits[0, -1].softmax(-1)[5]
    for layer, total in enumerate(scores):
        module = editor.language_model.get_submodule(editor.view.down_projection(layer))

        def silence(_: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden = args[0].clone()
            hidden[..., -1, :] = 0
            return (hidden, *args[1:])

        handle = module.register_forward_pre_hook(silence)
        none = editor.language_model(inputs).logits[0, -1].softmax(-1)[5]
        handle.remove()
        assert torch.isclose(total, full - none, rtol=1e-2, atol=1e-9)


def test_only_the_columns_of_the_neurons_change() -> None:
    editor = bound(steps=5)
    request = EditRequest("a", "The capital of France is", "Rome", old_target="Paris")
    delta = editor.edit(encode_batch(editor.tokenizer, [request]))
    chosen = {tuple(pair) for pair in delta.info["neurons"][0]}
    changed = set()
    for layer in range(editor.view.num_blocks):
        update = delta.weights.get(editor.view.parameter(layer))
        if update is not None:
            columns = update.dense().norm(dim=0).nonzero().flatten().tolist()
            changed |= {(layer, column) for column in columns}
            original = weight(editor.language_model, editor.view.parameter(layer)).read()
            ratio = update.dense().norm(dim=0)[columns] / original.norm(dim=0)[columns]
            # Both embeddings are brought to the column's length: |8 e_new - e_old| lies between.
            assert ((ratio > 7 - 1e-6) & (ratio < 9 + 1e-6)).all()
    assert changed == chosen


def test_editing_one_neuron_again_does_not_let_it_explode() -> None:
    editor = bound(steps=5)
    request = EditRequest("a", "The capital of France is", "Rome", old_target="Paris")
    name = editor.view.parameter(0)
    before = weight(editor.language_model, name).read().norm()
    ledger = Ledger(editor.language_model, editor)
    neuron = torch.tensor([[0, 1]])
    for number in range(20):
        one = replace(request, id=str(number))
        ledger.commit(Delta((one.id,), editor._updates(one, neuron, FIRST_ADD)), [one])
    # Nine columns' lengths an edit at most; taken from the column as it stands it would be 9**20.
    assert weight(editor.language_model, name).read().norm() < (1 + 9 * 20) * before


def test_the_size_of_a_pass_changes_nothing() -> None:
    editor = bound(steps=5)
    places = [[((1, 2, 3), (7,)), ((1, 2, 3), (7, 9))], [((4, 5, 6, 1, 2), (7,))]]
    wide = editor.attributions(places)
    alone = [editor.attributions([listed])[0] for listed in places]
    assert torch.allclose(torch.stack(alone), wide)
    editor.rows_per_pass = 3
    assert torch.allclose(editor.attributions(places), wide)


@pytest.mark.parametrize("variant", ["paper", "easyedit"])
def test_prompts_of_unequal_length_are_as_if_alone(variant: str) -> None:
    editor = bound(steps=4, variant=variant)
    places = [[((1, 2), (7,))], [((1, 2, 3), (9,))], [(tuple(range(1, 40)), (5,))]]
    alone = [editor.attributions([listed])[0] for listed in places]
    torch.testing.assert_close(editor.attributions(places), torch.stack(alone))


@pytest.mark.parametrize("variant", ["paper", "easyedit"])
def test_gradients_of_improbable_answers_keep_their_digits(variant: str) -> None:
    # A damaged model's answers have probabilities that single precision cannot hold.
    editor = bound(steps=4, variant=variant)
    place = ((1, 2, 3), (7,))
    with torch.no_grad():
        logits = editor.language_model(torch.tensor([place[0]])).logits[0, -1]
        editor.view.head.weight.mul_(250 / (logits.max() - logits[7]))
    exact = editor.attributions([[place]])
    assert 0 < exact.abs().max() < torch.finfo(torch.float32).tiny
    editor.language_model.float()
    single = editor.attributions([[place]])
    assert (single - exact).abs().max() < 1e-2 * exact.abs().max()


def test_prompts_that_have_no_neuron_share_none() -> None:
    assert len(shared_neurons(torch.zeros(3, 2, 4, dtype=torch.bool), 0.7, 2, 5)) == 0
    editor = bound(steps=4)
    with torch.no_grad():
        editor.view.head.weight.zero_()  # every answer is as probable as any other
    request = EditRequest("a", "The capital of France is", "Rome", old_target="Paris")
    delta = editor.edit(encode_batch(editor.tokenizer, [request]))
    assert delta.info["neurons"] == [[]]
    assert not delta.weights


def test_the_share_of_prompts_adapts_until_the_number_fits() -> None:
    marked = torch.zeros(10, 1, 4, dtype=torch.bool)
    for neuron, prompts in enumerate((10, 8, 6, 1)):
        marked[:prompts, 0, neuron] = True
    assert shared_neurons(marked, 0.7, 1, 5)[:, 1].tolist() == [0, 1]
    assert shared_neurons(marked, 0.7, 3, 5)[:, 1].tolist() == [0, 1, 2]
    assert shared_neurons(marked, 0.7, 1, 1)[:, 1].tolist() == [0]
    nothing_shared = torch.eye(10, dtype=torch.bool)[:, None]
    assert len(shared_neurons(nothing_shared, 0.9, 1, 5)) == 10


def test_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 steps"):
        KN(steps=1)
    assert path_points(20, "ends")[-1] == 1


def total(delta: Delta) -> float:
    return sum(delta.norm().values())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_new_answer_gets_the_smallest_weight_that_writes_it(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = EditRequest("a", "The capital of France is", "a", "France", "b")
    given = {value: bound(family, steps=4, add=value) for value in (FIRST_ADD, 4 * FIRST_ADD)}
    part = encode_batch(given[FIRST_ADD].tokenizer, [request])
    norms = {value: total(editor.edit(part)) for value, editor in given.items()}
    assert norms[FIRST_ADD] < norms[4 * FIRST_ADD]
    assert all(editor.chosen == {} for editor in given.values())
    for enough, expected in ((norms[4 * FIRST_ADD], 4 * FIRST_ADD), (float("inf"), FIRST_ADD)):

        def verdict(editor: KN, delta: Delta, encoded: object, enough: float = enough) -> object:
            return SimpleNamespace(right=torch.tensor([total(delta) >= 0.999 * enough]))

        monkeypatch.setattr(kn, "answers_with", verdict)
        editor = bound(family, steps=4)
        delta = editor.edit(part)
        assert delta.info["auto"] == {"add": expected} == editor.chosen
        assert total(delta) == pytest.approx(norms[expected], rel=1e-6)


def test_a_prompt_that_the_model_breaks_at_leaves_the_others() -> None:
    model = TINY["llama"]().requires_grad_(False).double()
    predictions = [((5, 6, 7), (8,)), ((5, 9, 10, 11), (12, 13)), ((5, 14), (8,))]
    points = torch.tensor([0.25, 0.75], dtype=torch.float64)

    def found() -> torch.Tensor:
        return integrated_gradients_by_suffixes(resolve(model), predictions, [0, 1], points, 8)

    sound = found()
    break_token(model, 9)
    broken = found()
    assert not broken[:, 1].isfinite().any()
    torch.testing.assert_close(broken[:, [0, 2]], sound[:, [0, 2]])


def test_prompts_whose_attributions_are_not_finite_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editor = bound(steps=5)
    request = EditRequest("a", "The capital of France is", "Rome", old_target="Paris")
    expected = editor.neurons(request)
    editor.templates = ["{}", "Rome. {}", "Lyon. {}"]
    whole = editor.attributions

    def broken(prompts: object) -> torch.Tensor:
        scores = whole(prompts)  # type: ignore[arg-type]
        scores[1, 0, 0], scores[2] = torch.inf, torch.nan
        return scores

    monkeypatch.setattr(editor, "attributions", broken)
    assert torch.equal(editor.neurons(request), expected)


def test_attributions_that_are_finite_nowhere_are_refused() -> None:
    editor = bound(steps=5)
    editor.language_model.model.norm.weight.fill_(torch.inf)
    request = EditRequest("a", "The capital of France is", "Rome", old_target="Paris")
    with pytest.raises(SolveError, match="request a: the attributions are not finite at any of"):
        editor.edit(encode_batch(editor.tokenizer, [request]))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_templates_of_a_model_without_outputs_are_refused_in_words(family: str) -> None:
    broken = TINY[family]().requires_grad_(False)
    norm = broken.model.norm if family == "llama" else broken.decoder.final_layer_norm
    norm.weight.fill_(3e38)  # a number, behind which no output is one
    with pytest.raises(NotFiniteError, match="its outputs are not finite; load it in float32"):
        KN().bind(broken, build_tokenizer(bos=True))
