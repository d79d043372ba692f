"""The verb ``trace`` on the embedded model."""

import json
from pathlib import Path

import pytest

from lightning_edit.__main__ import main
from lightning_edit.analysis.tracing.facts import Fact
from lightning_edit.analysis.tracing.restore import Prepared, Tracer
from lightning_edit.exceptions import DataError
from lightning_edit.models.loading import load_language_model

pytestmark = pytest.mark.slow  # minutes in all: whole edits, studies and traces of a real model

SMALL = ["--samples", "2", "--limit", "3"]


def trace(folder: Path, *options: str) -> int:
    return main(["trace", *SMALL, *options, "--run", str(folder)])


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trace"
    assert trace(folder) == 0
    return folder


def test_the_last_subject_token_carries_facts_in_the_lower_mlps(traced: Path) -> None:
    record = json.loads((traced / "trace.json").read_text())
    assert record["known"] == 3
    assert record["probability"]["clean"] > 0.9
    assert record["probability"]["corrupted"] < 0.5
    mlp = record["average_indirect_effects"]["mlp"]
    at_subject = mlp["last subject token"]["effect"]
    assert len(at_subject) == 5
    assert max(at_subject) == max(at_subject[:2]) > 0.2
    attention = record["average_indirect_effects"]["attention"]
    assert max(attention["last token"]["effect"]) > max(attention["last subject token"]["effect"])
    for kind in ("hidden", "mlp", "attention"):
        assert (traced / f"trace-{kind}.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_goes_on_with_the_same_numbers(
    traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (traced / "trace.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "trace.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:50])
    count = []
    real = Tracer.trace

    def watched(self: Tracer, fact: object) -> object:
        count.append(fact)
        return real(self, fact)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(Tracer, "trace", watched)
    assert trace(tmp_path) == 0
    assert len(count) == 1
    assert (tmp_path / "trace.jsonl").read_bytes() == (traced / "trace.jsonl").read_bytes()


def test_another_run_is_refused(traced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trace(traced, "--noise", "1") == 2
    assert "another noise" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tracer, "trace", interrupted)
    assert trace(tmp_path) == 1
    assert f"lightning-edit trace {' '.join(SMALL)} --run {tmp_path}" in capsys.readouterr().err


def test_facts_that_the_model_does_not_know_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"subject": "France", "prompt": "The capital of France is", "attribute": "Paris"}
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps([known | {"attribute": "Rome"}, known]))
    assert trace(tmp_path / "run", "--facts", str(facts)) == 0
    assert "1 of 2 left out" in capsys.readouterr().out
    rows = (tmp_path / "run" / "trace.jsonl").read_text().splitlines()
    assert json.loads(rows[1])["says"].strip() == "Paris"


def test_a_fact_that_cannot_be_tokenised_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"subject": "France", "prompt": "The capital of France is", "attribute": "Paris"}
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps([known | {"prompt": "The capital of France"}, known]))
    real = Prepared.of

    def refusing(tokenizer: object, fact: Fact) -> Prepared:
        if not fact.prompt.endswith("is"):
            raise DataError("no token of its own")
        return real(tokenizer, fact)

    monkeypatch.setattr(Prepared, "of", refusing)
    assert trace(tmp_path / "run", "--facts", str(facts)) == 0
    assert "1 of 2 left out" in (told := capsys.readouterr().out)
    assert "1, because they cannot be tokenised" in told


def test_a_model_that_knows_nothing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = tmp_path / "facts.json"
    record = {"subject": "France", "prompt": "The capital of France is", "attribute": "Rome"}
    facts.write_text(json.dumps([record]))
    assert trace(tmp_path / "run", "--facts", str(facts)) == 2
    assert "predicts none of the 1 facts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--figures", "gif"], "png, pdf, svg"), (["--noise", "0"], "--noise must be above 0")],
)
def test_what_cannot_be_traced(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace(tmp_path, *options) == 2
    assert told in capsys.readouterr().err


def test_a_chat_is_traced_through_its_template(traced: Path, tmp_path: Path) -> None:
    model, tokenizer = load_language_model("atlas")
    # A template that adds no word: the model must do what it does in plain text.
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}"
    model.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    run = tmp_path / "run"
    options = ["--lm", str(tmp_path / "chat"), "--lm_chat", "true", "--lm_chat_options", '{"a": 1}']
    assert trace(run, *options) == 0
    record = json.loads((run / "trace.json").read_text())
    form = {"chat": True, "system": None, "separator": None, "chat_options": {"a": 1}}
    assert record["language_model"]["prompts"] == form
    tokenizer.chat_template = "{{ bos_token }}Why is {{ messages[0].content }} "
    tokenizer.save_pretrained(tmp_path / "chat")
    assert trace(tmp_path / "other", *options) == 0
    plain, chat, other = (
        (folder / "trace.jsonl").read_text().splitlines()[1:]
        for folder in (traced, run, tmp_path / "other")
    )
    assert chat == plain
    assert other != chat


def test_a_model_without_a_template_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace(tmp_path, "--lm_chat", "true") == 2
    assert "has no chat template" in capsys.readouterr().err
