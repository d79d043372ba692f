"""The language model of the package: its tokenizer splits names, and it knows the facts."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from lightning_edit.atlas import MODEL_PATH, Atlas
from lightning_edit.atlas.evaluate import evaluate, generated, share, teacher_forced
from lightning_edit.atlas.text import Sentence
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText

#: What the package promises, trained and held-out wordings.
PROMISED = {"trained": 0.95, "held_out": 0.85}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return AutoTokenizer.from_pretrained(MODEL_PATH)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL_PATH).eval()


def test_the_model_is_small_and_documented() -> None:
    assert (MODEL_PATH / "model.safetensors").stat().st_size <= 16 * 1024**2
    assert "language_model.yaml" in (MODEL_PATH / "README.md").read_text(encoding="utf-8")


def test_most_subjects_are_several_tokens(atlas: Atlas, tokenizer: Tokenizer) -> None:
    subjects = sorted({subject for subject, _, _ in atlas.triples})
    pieces = [len(ids) for ids in tokenizer(subjects, add_special_tokens=False)["input_ids"]]
    assert sum(count >= 2 for count in pieces) / len(pieces) > 0.8


def test_a_name_is_the_same_tokens_wherever_it_stands(tokenizer: Tokenizer) -> None:
    def last_tokens(prompt: str) -> list[int]:
        end = prompt.index("Ouagadougou") + len("Ouagadougou")
        ids = tokenizer(prompt)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        subject = end - len("Ouagadougou"), end
        (encoded,) = PromptEncoder(tokenizer).encode([PromptText(prompt, subject=subject)])
        last = encoded.subject_last
        assert last is not None
        return ids[last - 1 : last + 1]

    expected = last_tokens("Ouagadougou is the capital of")
    assert last_tokens("The country of Ouagadougou is") == expected
    assert last_tokens("Paris is a city. In which country is Ouagadougou?") == expected


def test_a_wrong_answer_is_not_counted(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    rows = [
        Sentence("The capital of France is", "Paris"),
        Sentence("The capital of France is", "Oslo"),
    ]
    assert teacher_forced(model, tokenizer, rows) == 1
    assert generated(model, tokenizer, rows) == 1


def test_a_leading_sentence_does_not_break_recall(
    atlas: Atlas, model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    rows = [
        Sentence(
            f"Oslo is a city. {atlas.prompt(t, atlas.trained_wordings(t)[0])}",
            atlas.entities[t[2]].text,
        )
        for t in atlas.triples[::40]
    ]
    assert teacher_forced(model, tokenizer, rows) / len(rows) >= 0.9


@pytest.mark.parametrize("limit", [100, pytest.param(700, marks=pytest.mark.slow)])
def test_the_model_knows_the_facts(
    atlas: Atlas, model: PreTrainedModel, tokenizer: Tokenizer, limit: int | None
) -> None:
    counts = evaluate(model, tokenizer, atlas, limit=limit)
    for group, promised in PROMISED.items():
        assert share(counts[f"{group}@tf"]) >= promised, counts
        assert share(counts[f"{group}@gen"]) >= promised, counts
