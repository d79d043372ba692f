"""Knowledge neurons of models with two stacks: the decoder's, where answers are predicted."""

from typing import Any

import pytest
import torch

from lightning_edit.editors import KN
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.answer_rows import AnswerRows, start_tokens
from lightning_edit.inference.answers import answer_logits
from lightning_edit.models.weights import weights_hash
from tests.editors.two_stacks import MODELS, build, facts, tokenizer

kinds = pytest.mark.parametrize("kind", MODELS)


def bound(kind: str, **options: Any) -> Any:
    return KN(**{"context_templates": [], **options}).bind(build(kind).double(), tokenizer())


@kinds
def test_attributions_add_up_to_the_change_of_the_probability(kind: str) -> None:
    """Integrated gradients are complete; only the position that predicts the token is scaled."""
    editor, finer = bound(kind, steps=400), bound(kind, steps=800)
    model, tokens = editor.language_model, (7, 9, 12)
    (prompt,) = editor.prompts.prompts(["The capital of the long river is"])
    coarse = editor.attributions([[(prompt, tokens)]])[0].sum(1)
    # The sum's error falls with 1 / steps, however steep this model's weights make the path.
    scores = 2 * finer.attributions([[(prompt, tokens)]])[0].sum(1) - coarse
    decoder = torch.tensor([[*start_tokens(model), *tokens[:-1]]])

    def probability() -> float:
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits
        return float(logits[0, -1].softmax(-1)[tokens[-1]])

    def silence(_: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0].clone()
        hidden[..., -1, :] = 0
        return (hidden, *args[1:])

    full = probability()
    for layer, total in enumerate(scores):
        module = model.get_submodule(editor.view.down_projection(layer))
        handle = module.register_forward_pre_hook(silence)
        none = probability()
        handle.remove()
        assert float(total) == pytest.approx(full - none, rel=5e-3, abs=1e-9)


@kinds
def test_the_size_of_a_pass_and_its_padding_change_nothing(kind: str) -> None:
    editor = bound(kind, steps=3)
    texts = ["Rome", "The capital of the long river of Arles is", "日本"]
    prompts = editor.prompts.prompts(texts)
    places = [[(prompt, (7,)), (prompt, (7, 9, 11))] for prompt in prompts]
    wide = editor.attributions(places)
    alone = [editor.attributions([listed])[0] for listed in places]
    torch.testing.assert_close(torch.stack(alone), wide, rtol=1e-4, atol=1e-9)
    editor.rows_per_pass = 3
    torch.testing.assert_close(editor.attributions(places), wide, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_decoders_neurons_are_rewritten_and_taken_back(kind: str) -> None:
    """Heads tied to the embeddings: what is added to the neurons raises the new answer."""
    editor = KN(steps=5, context_templates=["Well. {}"]).bind(build(kind), tokenizer())
    model, before = editor.language_model, weights_hash(editor.language_model)
    for request in facts()[1:3]:
        encoded = encode_batch(editor.prompts, [request]).encoded[0]
        row = AnswerRows.of(model, [(encoded.prompt_ids, encoded.target_ids)])
        with torch.no_grad():
            old = torch.nn.functional.cross_entropy(answer_logits(model, row), row.targets)
            edited = editor.edit_model(model, editor.prompts, [request])
            new = torch.nn.functional.cross_entropy(answer_logits(model, row), row.targets)
        assert float(new) < float(old) - 0.5, request.prompt
        downs = {f"{block.mlp_down}.weight" for block in editor.view.blocks}
        assert set(edited.ledger.touched) <= downs
        edited.undo()
        assert weights_hash(model) == before


def test_templates_are_the_models_own_words_and_those_of_its_seed() -> None:
    made = [KN(seed=seed).bind(build("bart"), tokenizer()).templates for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    assert made[0][0] == "{}"
    assert made[0][1].startswith("The")
    assert all(text.count("{}") == 1 for text in made[0])
    assert len(set(made[0])) == 6


def test_the_ports_variant_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"T5.* is encoder-decoder, .*variant='paper'"):
        KN(variant="easyedit").bind(build("t5"), tokenizer())
