"""Sequences that share a beginning, run as a tree, give what each gives by itself."""

import pytest
import torch
import transformers
from torch import nn

from lightning_edit.inference.packed.backend import NotPackableError
from lightning_edit.inference.prefix_tree import TokenTree, prefix_batches, tree_attention
from lightning_edit.inference.teacher_forcing import TeacherForcing
from tests.models.tiny import build_tiny

_OPT = pytest.mark.skipif(
    transformers.__version__.startswith("5.0."),
    reason="transformers 5.0 gives OPT's attention a mask, so it is run with padding instead",
)
SEQUENCES = [(5, 6, 7), (5, 6, 8, 9), (5, 6), (7,), (5, 6, 8, 9, 6, 7)]


def test_what_sequences_share_is_there_once() -> None:
    tree = TokenTree.of(SEQUENCES)
    assert tree.ids.tolist() == [[5, 6, 7, 8, 9, 7, 6, 7]]
    assert tree.positions.tolist() == [[0, 1, 2, 2, 3, 0, 4, 5]]
    assert tree.places == ((0, 1, 2), (0, 1, 3, 4), (0, 1), (5,), (0, 1, 3, 4, 6, 7))
    visible = [row.nonzero().flatten().tolist() for row in tree.attention_mask()]
    assert visible == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 3],
        [0, 1, 3, 4],
        [5],
        [0, 1, 3, 4, 6],
        [0, 1, 3, 4, 6, 7],
    ]


def test_batches_keep_together_what_begins_alike() -> None:
    groups = prefix_batches(SEQUENCES, max_rows=64, max_tokens=7)
    assert groups == [[2, 0, 1, 4], [3]]
    assert TokenTree.of([SEQUENCES[number] for number in groups[0]]).ids.shape[1] == 7
    assert [len(group) for group in prefix_batches(SEQUENCES, 2, 100)] == [2, 2, 1]
    assert prefix_batches([(1,) * 50, (2,)], 8, 10) == [[0], [1]]


@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi",
               "phi3", pytest.param("opt", marks=_OPT)],
)  # fmt: skip
def test_a_tree_gives_the_logits_of_its_sequences(family: str) -> None:
    model = build_tiny(family).eval()
    tree = TokenTree.of(SEQUENCES)
    with torch.no_grad(), tree_attention(model, tree):
        found = model(input_ids=tree.ids, position_ids=tree.positions, use_cache=False).logits[0]
    for sequence, path in zip(SEQUENCES, tree.places, strict=True):
        with torch.no_grad():
            wanted = model(torch.tensor([sequence])).logits[0]
        torch.testing.assert_close(found[list(path)], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gptj", "gemma2"])
def test_a_model_that_attends_in_its_own_way_is_refused(family: str) -> None:
    with (
        pytest.raises(NotPackableError),
        tree_attention(build_tiny(family), TokenTree.of(SEQUENCES)),
    ):
        pass


def test_a_window_that_is_shorter_than_a_sequence_is_refused() -> None:
    model = build_tiny("mistral", sliding_window=3).eval()
    tree = TokenTree.of(SEQUENCES)
    with pytest.raises(NotPackableError), tree_attention(model, tree):
        model(input_ids=tree.ids, position_ids=tree.positions, use_cache=False)
    assert model.config._attn_implementation == "sdpa"


class Counted:
    """How many tokens go through a model's embedding, which no hook of the model's says."""

    def __init__(self, model: nn.Module) -> None:
        embeddings = model.get_input_embeddings()
        forward = embeddings.forward
        self.shapes: list[tuple[int, int]] = []

        def counting(ids: torch.Tensor) -> torch.Tensor:
            self.shapes.append((ids.shape[0], ids.shape[1]))
            return forward(ids)

        embeddings.forward = counting


def test_one_question_with_many_answers_is_read_once() -> None:
    model = build_tiny("llama").eval()
    rows = [((5, 6, 7, 8), (answer, 9)) for answer in range(10, 20)]
    counted = Counted(model)
    with torch.no_grad():
        found = TeacherForcing(model, 64)(rows, {})
        assert counted.shapes == [(1, 4 + 10)]
        handle = model.register_forward_hook(lambda *_: None)
        padded = TeacherForcing(model, 64)(rows, {})
        handle.remove()
        assert counted.shapes[1:] == [(10, 5)]
    for row in rows:
        assert found[row].chosen == padded[row].chosen
        assert found[row].nlls == pytest.approx(padded[row].nlls, abs=1e-5)
