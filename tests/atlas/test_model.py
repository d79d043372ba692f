"""The language models of the package: their tokenizers split names, and they know the facts."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from lightning_edit.atlas import MODEL_PATH, T5_MODEL_PATH, Atlas
from lightning_edit.atlas.evaluate import evaluate, generated, share, teacher_forced
from lightning_edit.atlas.text import Sentence
from lightning_edit.models.loading import PACKAGED, load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText

#: What the package promises, trained and held-out wordings.
PROMISED = {"trained": 0.95, "held_out": 0.85}


#: Folder, largest file of weights in MiB and the recipe of each packaged model.
MODELS = {
    "atlas": (MODEL_PATH, 16, "language_model.yaml"),
    "atlas-t5": (T5_MODEL_PATH, 8, "language_model_t5.yaml"),
}


@pytest.fixture(scope="module", params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(name: str) -> tuple[PreTrainedModel, Tokenizer]:
    return load_language_model(name)


@pytest.fixture(scope="module")
def model(loaded: tuple[PreTrainedModel, Tokenizer]) -> PreTrainedModel:
    return loaded[0]


@pytest.fixture(scope="module")
def tokenizer(loaded: tuple[PreTrainedModel, Tokenizer]) -> Tokenizer:
    return loaded[1]


def size_of(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def test_every_packaged_model_is_checked_here() -> None:
    assert list(MODELS) == list(PACKAGED)


def test_the_model_is_small_and_documented(name: str, model: PreTrainedModel) -> None:
    folder, mebibytes, recipe = MODELS[name]
    assert size_of(folder.iterdir()) <= mebibytes * 1024**2
    assert sum(p.numel() for p in model.parameters()) <= 4_000_000
    assert recipe in (folder / "README.md").read_text(encoding="utf-8")
    assert model.name_or_path == name
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_model_of_two_stacks_is_stored_in_half_precision() -> None:
    stored = load_file(T5_MODEL_PATH / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    # No number has left the range of float16, and none is so large that sums soon would.
    assert all(tensor.abs().max().item() < 1000 for tensor in stored.values())
    config = json.loads((T5_MODEL_PATH / "config.json").read_text(encoding="utf-8"))
    wanted = {
        "model_type": "t5",
        "dtype": "float16",
        "dropout_rate": 0.0,
        "is_encoder_decoder": True,
    }
    assert {key: config[key] for key in wanted} == wanted
    assert config["decoder_start_token_id"] == config["pad_token_id"] != config["eos_token_id"]
    model, tokenizer = load_language_model("atlas-t5")
    (prompt,) = PromptEncoder.for_model(model, tokenizer).prompts(["The capital of France is"])
    assert prompt[-1] == tokenizer.eos_token_id == config["eos_token_id"]
    assert all(torch.equal(stored[n].float(), p) for n, p in model.named_parameters())


def test_most_subjects_are_several_tokens(atlas: Atlas, tokenizer: Tokenizer) -> None:
    subjects = sorted({subject for subject, _, _ in atlas.triples})
    pieces = [len(ids) for ids in tokenizer(subjects, add_special_tokens=False)["input_ids"]]
    assert sum(count >= 2 for count in pieces) / len(pieces) > 0.8


def test_a_name_is_the_same_tokens_wherever_it_stands(name: str, tokenizer: Tokenizer) -> None:
    def last_tokens(prompt: str) -> list[int]:
        end = prompt.index("Ouagadougou") + len("Ouagadougou")
        ids = tokenizer(prompt)["input_ids"]
        if name == "atlas":
            assert ids[0] == tokenizer.bos_token_id
        else:
            assert (ids[-1], tokenizer.bos_token_id) == (tokenizer.eos_token_id, None)
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


def test_a_leading_sentence_does_not_break_recall(atlas: Atlas) -> None:
    # The model of two stacks does not hold this; its card says so.
    model, tokenizer = load_language_model("atlas")
    rows = [
        Sentence(
            f"Oslo is a city. {atlas.prompt(t, atlas.trained_wordings(t)[0])}",
            atlas.entities[t[2]].text,
        )
        for t in atlas.triples[::40]
    ]
    assert teacher_forced(model, tokenizer, rows) / len(rows) >= 0.9


def test_answers_are_the_same_in_float16(atlas: Atlas) -> None:
    model, tokenizer = load_language_model("atlas-t5", "float16")
    rows = [
        Sentence(atlas.prompt(t, atlas.trained_wordings(t)[1]), atlas.entities[t[2]].text)
        for t in atlas.triples[::80]
    ]
    assert teacher_forced(model, tokenizer, rows) / len(rows) >= 0.95


@pytest.mark.parametrize("limit", [30, pytest.param(700, marks=pytest.mark.slow)])
def test_the_model_knows_the_facts(
    atlas: Atlas, model: PreTrainedModel, tokenizer: Tokenizer, limit: int | None
) -> None:
    counts = evaluate(model, tokenizer, atlas, limit=limit)
    for group, promised in PROMISED.items():
        assert share(counts[f"{group}@tf"]) >= promised, counts
        assert share(counts[f"{group}@gen"]) >= promised, counts
