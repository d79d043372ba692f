"""Blocks whose attention and MLP work side by side: the first MLP has read one token alone."""

from typing import Any

import pytest
import torch

from lightning_edit.editors import GRACE, MELO, MEMOIR, WISE, Editor
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.responder import Question, Statement
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tiny, build_tokenizer

#: Falcon and its like, beside families of one after the other.
SIDE_BY_SIDE = ("falcon", "gpt_neox", "gptj", "phi")
ONE_BY_ONE = ("llama", "gpt2", "bloom", "opt", "gemma3_text")
FACTS = [
    EditRequest("a", "The capital of France is", "Lyon", "France"),
    EditRequest("b", "The capital of Italy is", "Arles", "Italy"),
    EditRequest("c", "Marseille lies in", "Italy", "Marseille"),
]
#: Other prompts, that end with the last token of an edit's.
OTHERS = ["The river Rhône is", "Danielle Darrieux lies in"]
MELO_ARGUMENTS: dict[str, Any] = {"rank": 8, "steps": 20, "radius_share": 0.05}


def model_of(family: str, **changes: Any) -> Any:
    return build_tiny(family, **changes).requires_grad_(False)


@pytest.mark.parametrize("family", SIDE_BY_SIDE)
def test_its_keys_are_those_of_the_last_token(family: str) -> None:
    """Why: prompts that end alike have one key, so that edits cannot be told apart."""
    model, tokenizer = model_of(family), build_tokenizer()
    editor = MELO(1, layers=[2], **MELO_ARGUMENTS).bind(model, tokenizer)
    for block, same in ((0, True), (1, False)):
        module = editor.view.down_projection(block)
        ends = []
        for prompt in (FACTS[0].prompt, FACTS[1].prompt, OTHERS[0]):
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            with torch.no_grad(), capture(model, {module: "output"}, stop=True) as captured:
                model(input_ids=ids)
            ends.append(captured[module][0, -1])
        assert torch.allclose(ends[0], ends[1], atol=1e-5) is same
        assert torch.allclose(ends[0], ends[2], atol=1e-5) is same


@pytest.mark.parametrize("family", SIDE_BY_SIDE)
@pytest.mark.parametrize(
    "make",
    [
        lambda: MELO(0, layers=[1, 2], **MELO_ARGUMENTS),
        lambda: GRACE(layer=0),
        lambda: GRACE(layer=0, projection="up"),
    ],
    ids=["MELO", "GRACE", "GRACE at the up-projection"],
)
def test_such_a_place_is_refused(family: str, make: Any) -> None:
    model = model_of(family)
    with pytest.raises(
        ArchitectureError, match=r"has read the last token alone.*block of 1 or more"
    ):
        make().bind(model, build_tokenizer())


@pytest.mark.parametrize("family", ONE_BY_ONE)
def test_blocks_of_one_after_the_other_are_not(family: str) -> None:
    MELO(0, layers=[1, 2], **MELO_ARGUMENTS).bind(model_of(family), build_tokenizer())
    GRACE(layer=0).bind(model_of(family), build_tokenizer())


def test_falcon_whose_blocks_do_one_after_the_other() -> None:
    GRACE(layer=0).bind(model_of("falcon", parallel_attn=False), build_tokenizer())


@pytest.mark.parametrize(
    "make",
    [
        lambda: MELO(1, layers=[2], **MELO_ARGUMENTS),
        lambda: GRACE(layer=1, steps=20, radius=0.5),
    ],
    ids=["MELO", "GRACE"],
)
@pytest.mark.parametrize(
    "family", ["falcon", *(pytest.param(f, marks=pytest.mark.slow) for f in SIDE_BY_SIDE[1:])]
)
def test_one_block_on_the_edits_hold_and_other_prompts_keep_their_bits(
    family: str, make: Any
) -> None:
    editor: Editor = make()
    edited = editor.edit_model(model_of(family), build_tokenizer(), FACTS)
    responder = edited.responder()
    bare = make().bind(model_of(family), build_tokenizer()).responder(())
    asked = [Question(one, 4) for one in OTHERS]
    assert responder.generate_until(asked, ()) == bare.generate_until(asked, ())
    said = [Statement(one, "Lyon and Arles") for one in OTHERS]
    assert responder.loglikelihood(said) == bare.loglikelihood(said)
    own = [Statement(one.prompt, one.target) for one in FACTS]
    before, after = bare.loglikelihood(own), responder.loglikelihood(own)
    assert all(new.total < old.total for new, old in zip(after, before, strict=True))


def test_editors_that_read_the_whole_prompt_may_sit_there() -> None:
    """WISE and MEMOIR take the mean over the prompt's tokens, which differs."""
    for make in (lambda: WISE(0, templates=[]), lambda: MEMOIR(0, templates=[])):
        make().bind(model_of("falcon"), build_tokenizer())
