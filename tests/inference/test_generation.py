"""What a forced pass tells of a continuation is not generated again, and changes no text."""

import pytest
from torch import nn

from lightning_edit.evaluation.scorer import Scorer, probes_of
from lightning_edit.inference.generation import GreedyGenerator, PartialContinuation, follow
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.types import EditRequest, Probe
from tests.models.tiny import build_tiny, build_tokenizer


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_tiny("llama")


def test_a_forced_pass_tells_tokens_up_to_the_first_other_choice() -> None:
    assert follow((5, 6, 7), (5, 6, 7, 8)) == (5, 6, 7, 8)
    assert follow((5, 6, 7), (5, 9, 7, 8)) == (5, 9)
    assert follow((5, 6, 7), (4, 6, 7, 8)) == (4,)


def test_a_beginning_is_all_there_is_at_an_end_token_a_line_end_or_the_limit(
    model: nn.Module,
) -> None:
    tokenizer = build_tokenizer(bos=True)
    writer = GreedyGenerator(model, PromptEncoder(tokenizer), 4)
    end = writer.ends[0]
    words = tuple(tokenizer("Rome Paris", add_special_tokens=False)["input_ids"])
    assert writer.begun((*words, end, 5), 16) == PartialContinuation(words, done=True)
    assert writer.begun(words, len(words)).done
    assert not writer.begun(words, len(words) + 1).done
    assert writer.begun((), 3) == PartialContinuation((), done=False)


def test_known_beginnings_change_no_text(model: nn.Module) -> None:
    tokenizer = build_tokenizer(bos=True)
    free = Scorer(model, tokenizer, modes=("gen",), max_new_tokens=9)
    # What the model writes is given as answers, whole or in part, so that the pass tells much.
    prompts = ["The capital of France is", "Lyon lies in", "The river that flows through Lyon is"]
    asked = [EditRequest(str(n), prompt, "Rome") for n, prompt in enumerate(prompts)]
    texts = [free.score(list(probes_of(one)))[0].generated for one in asked]
    for share in (1, 2, 3):
        answers = [str(text)[: max(1, len(str(text)) // share)] for text in texts]
        told = [
            EditRequest(one.id, one.prompt, "Rome", probes=(Probe.of("one_hop", one.prompt, a),))
            for one, a in zip(asked, answers, strict=True)
        ]
        scorer = Scorer(model, tokenizer, max_new_tokens=9)
        found = [scorer.score(list(probes_of(one)))[-1].generated for one in told]
        assert found == texts


def test_settings_that_forbid_tokens_leave_writing_to_the_model() -> None:
    model = build_tiny("llama")
    writer = GreedyGenerator(model, PromptEncoder(build_tokenizer()), 4)
    assert writer.is_plain
    model.generation_config.suppress_tokens = [5]
    assert not writer.is_plain
