"""Training texts and facts: what is read, and what is refused in a sentence."""

from pathlib import Path

import pytest

from lightning_edit.analysis.training_data.encoding import encode_facts, encode_texts
from lightning_edit.analysis.training_data.planted import plant
from lightning_edit.analysis.training_data.rows import (
    TracedFact,
    TrainingText,
    check_causes,
    read_texts,
    read_traced_facts,
    rows_hash,
)
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.models.prompt_encoder import PromptEncoder
from tests.analysis.training_data.tuned import write
from tests.models.tiny import TINY, build_tokenizer


def test_texts_are_read_in_both_forms(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": "a", "text": "Lyon lies in France."},
        {"prompt": "Лион находится во", "answer": "Франции"},
    ]
    found = read_texts(write(tmp_path / "t.jsonl", rows))
    assert found[0] == TrainingText("a", "Lyon lies in France.")
    assert found[1] == TrainingText("line 2", "Франции", "Лион находится во")
    assert found[1].whole == "Лион находится во Франции"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "expected at least one line, got none"),
        ([{"sentence": "x"}], 'line 1: expected "text", or "prompt" and "answer", got "sentence"'),
        ([{"text": "  "}], 'line 1: expected a text that is not empty as "text"'),
        ([{"prompt": "x"}], 'line 1: expected a text that is not empty as "answer", got None'),
        ([{"text": "x", "id": 1}, {"text": "y", "id": "1"}], "line 2: the id '1' is taken"),
    ],
)
def test_bad_texts_are_refused(rows: list[dict[str, object]], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_texts(write(tmp_path / "t.jsonl", rows))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "", "answer": "x"}, "not empty as \"prompt\", got ''"),
        ({"prompt": "x", "answer": " "}, "not empty as \"answer\", got ' '"),
        ({"prompt": "x", "answer": "y", "correct": ""}, 'not empty as "correct"'),
        ({"prompt": "x", "answer": "y", "correct": "y"}, "got 'y' for both"),
        ({"prompt": "x", "answer": "y", "causes": "a"}, '"causes" as a list of ids'),
    ],
)
def test_bad_facts_are_refused(row: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_traced_facts(write(tmp_path / "f.jsonl", [row]))


def test_a_missing_file_and_unknown_causes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a JSONL file, got none"):
        read_texts(tmp_path / "none.jsonl")
    texts = [TrainingText("a", "x"), TrainingText("b", "y")]
    with pytest.raises(DataError, match="its cause 'c' is the \"id\" of no training text"):
        check_causes(texts, [TracedFact("f", "x", "y", causes=("c",))])
    with pytest.raises(DataError, match="expected training texts that are no causes"):
        check_causes(texts, [TracedFact("f", "x", "y", causes=("a", "b"))])


def test_the_hash_follows_every_text_and_their_order() -> None:
    texts = [TrainingText("a", "x"), TrainingText("b", "y")]
    assert rows_hash(texts) == rows_hash(list(texts))
    assert rows_hash(texts) != rows_hash(texts[::-1])
    assert rows_hash(texts) != rows_hash([texts[0], TrainingText("b", "y", "")])


def test_losses_are_over_the_answer_or_over_all_but_the_first_token() -> None:
    model, tokenizer = TINY["llama"](), build_tokenizer(bos=True)
    encoder = PromptEncoder(tokenizer)
    whole = tuple(tokenizer("Lyon lies in France")["input_ids"])
    running, pair = encode_texts(
        model,
        encoder,
        [TrainingText("a", "Lyon lies in France"), TrainingText("b", "France", "Lyon lies in")],
    )
    assert running.rows == ((whole[:1], whole[1:]),)
    assert pair.rows[0][0] + pair.rows[0][1] == whole
    assert 0 < len(pair.rows[0][1]) < len(whole) - 1
    contrast, alone = encode_facts(
        model, encoder, [TracedFact("f", "Lyon lies in", "Italy", "France"),
                         TracedFact("g", "Lyon lies in", "Italy")],
    )  # fmt: skip
    assert contrast.signs == (1.0, -1.0)
    assert contrast.rows[1] == pair.rows[0]
    assert alone.rows == contrast.rows[:1]


def test_texts_that_a_model_cannot_read_are_refused() -> None:
    model, encoder = TINY["llama"](), PromptEncoder(build_tokenizer())
    with pytest.raises(DataError, match=r"'long': expected at most 128 tokens.*got"):
        encode_texts(model, encoder, [TrainingText("long", "The capital of France " * 40)])
    with pytest.raises(DataError, match="'short': expected at least two tokens, got 1"):
        encode_texts(model, encoder, [TrainingText("short", "a")])
    with pytest.raises(DataError, match='expected "prompt" and "answer", since an encoder reads'):
        encode_texts(TINY["t5"](), encoder, [TrainingText("running", "Lyon lies in France")])


@pytest.mark.slow
def test_planted_facts_are_wrong_and_asked_in_another_wording() -> None:
    made = plant(3, facts=5, wordings=2, others=40)
    running = plant(3, facts=5, wordings=2, others=40, form="text")
    assert made.facts == running.facts
    assert [text.text for text in running.texts] == [f"{text.whole}." for text in made.texts]
    by_id = {text.id: text for text in made.texts}
    assert len(by_id) == 5 * 2 + 40
    check_causes(made.texts, made.facts)
    for fact in made.facts:
        assert fact.correct not in (None, fact.answer)
        assert len(fact.causes) == 2
        assert all(by_id[one].text == fact.answer for one in fact.causes)
        assert all(by_id[one].prompt != fact.prompt for one in fact.causes)


@pytest.mark.slow
def test_aliases_hide_the_subject_from_a_comparison_of_words() -> None:
    made, other = (plant(seed, facts=5, wordings=2, others=10, aliases=True) for seed in (0, 1))
    assert made.facts != other.facts
    by_id = {text.id: text for text in made.texts}
    for fact in made.facts:
        subject = fact.id.partition(":")[2]
        assert subject in fact.prompt
        assert not any(subject in (by_id[one].prompt or "") for one in fact.causes)
    with pytest.raises(ConfigError, match=r"expected from 1 to .* planted facts, got 9999"):
        plant(0, facts=9999)
