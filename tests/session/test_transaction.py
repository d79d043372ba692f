"""Transactions: what misses a condition is never committed, and a resumed run decides alike."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit import FTM, GRACE, Transaction
from lightning_edit.callbacks import MeasurementCallback
from lightning_edit.callbacks.base import Commit, EvalContext, Measurement
from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import (
    ArchitectureError,
    ConfigError,
    DataError,
    EditRefusedError,
    NotFiniteError,
)
from lightning_edit.functional.entropy import LOG_PERPLEXITY_CAP
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from tests.callbacks.planted import Destroys, toy_texts
from tests.models.tiny import build_tiny, build_tokenizer
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer

TEXTS = toy_texts(6)
FACTS = [
    {"prompt": "The capital of France is", "target": "Lyon", "id": "france"},
    {"prompt": "Marseille lies in", "target": "Italy", "id": "marseille"},
]


class Seen(MeasurementCallback):
    """Collects the commits that callbacks are told of."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[str] = []

    def measure(self, context: EvalContext) -> Measurement:
        return Measurement({})

    def on_commit(self, commit: Commit) -> None:
        self.commits += [request.id for request in commit.context.requests]


def run(
    folder: Path, transaction: Transaction, fail_at: str | None = None, **options: Any
) -> dict[str, Any]:
    bad = ("fact-2", "fact-5")
    editor = Destroys(ToyEditor(fail_at), bad, 30.0).bind(toy_model(), toy_tokenizer())
    callbacks = options.pop("callbacks", [])
    trainer = EditTrainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, callbacks=callbacks
    )
    options = {"checkpoint_every": 2, "eval_at": [4, "end"]} | options
    return trainer.edit(editor, ToyData(8), run=str(folder), transaction=transaction, **options)


def in_force(folder: Path) -> list[str]:
    return [name for entry in Journal(folder / "ledger").active() for name in entry.ids]


def refused(results: dict[str, Any]) -> list[str]:
    return [i for row in results["events"] for i in row["event"]["edits"]]


GOOD = [f"fact-{i}" for i in (0, 1, 3, 4, 6, 7)]


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"max_norm": 50.0}, "has norm"),
        ({"max_perplexity_ratio": 3.0, "texts": TEXTS}, "times that of the unedited model"),
    ],
)
def test_an_edit_that_breaks_a_bound_is_dropped_and_the_stream_goes_on(
    tmp_path: Path, conditions: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    results = run(tmp_path, Transaction(**conditions), callbacks=[seen])
    assert in_force(tmp_path) == seen.commits == GOOD
    assert refused(results) == ["fact-2", "fact-5"]
    assert said in results["events"][0]["event"]["reason"]
    assert "The edit of fact-2 was refused" in caplog.text
    assert len(Journal(tmp_path / "ledger").commits()) == 6  # nothing of the refused ones
    clean = run(tmp_path / "without", Transaction(), protocol="single", modes=("tf",))
    assert "events" not in clean


@pytest.mark.slow
def test_a_killed_run_decides_like_an_uninterrupted_one(tmp_path: Path) -> None:
    conditions = Transaction(max_perplexity_ratio=3.0, texts=TEXTS)
    whole = run(tmp_path / "whole", conditions)
    with pytest.raises(RuntimeError, match="planted"):
        run(tmp_path / "cut", conditions, fail_at="fact-6")
    resumed = run(tmp_path / "cut", conditions, ckpt_path="last")
    assert resumed["points"] == whole["points"]
    assert resumed["events"] == whole["events"]
    for name in ("cases.jsonl", "measures.jsonl", "ledger/journal.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_scores_are_floors_and_a_batch_is_refused_whole(tmp_path: Path) -> None:
    """The toy editor writes noise, so no generated answer is right and neighbours move."""
    results = run(tmp_path / "r", Transaction(min_reliability=1.0), batch_size=2)
    assert in_force(tmp_path / "r") == []
    assert refused(results) == [f"fact-{i}" for i in range(8)]
    assert len(results["events"]) == 4  # two requests a commit
    assert "reliability/answer@gen is 0, less than 1" in results["events"][0]["event"]["reason"]
    kept = run(tmp_path / "l", Transaction(min_locality=0.5))
    after = json.loads((tmp_path / "l" / "results.json").read_text())["points"][-1]["metrics"]
    assert refused(kept)
    assert all(
        row["event"]["reason"] == "locality/kept@tf is 0, less than 0.5 (min_locality)"
        for row in kept["events"]
    )
    assert after["locality/kept@tf"] > 0.5


def test_a_condition_needs_its_mode_and_a_range(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add gen to --modes"):
        run(tmp_path, Transaction(min_reliability=1.0), modes=("tf",))
    with pytest.raises(DataError, match=r"nope\.txt"):
        run(tmp_path, Transaction(max_perplexity_ratio=2.0, texts=str(tmp_path / "nope.txt")))
    assert not (tmp_path / "ledger").exists()
    assert not (tmp_path / "baseline.jsonl").exists()
    with pytest.raises(ConfigError) as found:
        Transaction(min_reliability=95.0, max_norm=float("nan"), limit=0)
    for said in (
        "`min_reliability` must be above 0 and at most 1, got 95.0",
        "`max_norm`",
        "`limit`",
    ):
        assert said in str(found.value)


def test_a_bound_that_could_never_refuse_is_refused_itself() -> None:
    edited = GRACE(steps=2).edit_model(build_tiny("llama"), build_tokenizer(), FACTS[0])
    with pytest.raises(ConfigError, match="edits of GRACE act at run time and have none"):
        edited.edit(FACTS[1], conditions=Transaction(max_norm=1.0))
    assert edited.ledger.request_ids == ("france",)


def test_a_handle_whose_model_is_broken_is_compared_with_nothing() -> None:
    """The weights are finite, but no output is: 1.0 times its perplexity would be any model's."""
    edited = FTM(steps=2, lr=1e-3).edit_model(build_tiny("llama"), build_tokenizer(), FACTS[0])
    with torch.no_grad():
        edited.model.get_output_embeddings().weight.fill_(3e38)
    request = FACTS[1] | {
        "probes": [{"kind": "neighborhood", "prompt": "Rome lies in", "answers": ["Italy"]}]
    }
    for conditions, said in (
        (Transaction(max_perplexity_ratio=2.0, texts=TEXTS), "own outputs are not finite on"),
        (Transaction(min_locality=0.5), "own outputs at 'Rome lies in' are not finite"),
    ):
        with pytest.raises(NotFiniteError, match=said):
            edited.edit(request, conditions=conditions)
    assert edited.ledger.request_ids == ("france",)
    bound = Transaction(max_perplexity_ratio=1e40)
    assert "not finite" in str(bound.refusal({}, math.exp(LOG_PERPLEXITY_CAP), 12.0))
    assert bound.refusal({}, 24.0, 12.0) is None


def test_perplexity_of_two_stacks_is_refused_in_words() -> None:
    edited = FTM(steps=2).edit_model(build_tiny("t5"), build_tokenizer(eos=True), FACTS[0])
    with pytest.raises(ArchitectureError, match="assigns no probability to running text"):
        edited.edit(FACTS[1], conditions=Transaction(max_perplexity_ratio=2.0))


def test_a_handle_refuses_all_of_a_call_and_leaves_nothing() -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer()
    before = weights_hash(model)
    editor = FTM(steps=40, lr=1e-2)
    edited = editor.edit_model(model, tokenizer, FACTS[0])
    written = weights_hash(model)
    assert written != before
    edited.edit(FACTS[1], conditions=Transaction(max_norm=100.0))
    assert edited.ledger.request_ids == ("france", "marseille")
    edited.undo("marseille")
    assert weights_hash(model) == written
    with pytest.raises(EditRefusedError, match="edit of marseille2 was refused: the update of"):
        edited.edit({**FACTS[1], "id": "marseille2"}, conditions=Transaction(max_norm=1e-6))
    assert weights_hash(model) == written
    assert edited.ledger.request_ids == ("france",)
    neighbour = {"kind": "neighborhood", "prompt": "The capital of Italy is", "answers": "Rome"}
    ids = tokenizer("The capital of Italy is", return_tensors="pt").input_ids
    first = model(ids).logits[0, -1].argmax()
    with pytest.raises(EditRefusedError, match="locality/kept@tf is"):
        FTM(steps=40, lr=5e-2, layers=[0, 1, 2]).edit_model(
            build_tiny("llama"), tokenizer, FACTS[0]
        ).edit(
            {**FACTS[1], "id": "x", "probes": [neighbour]},
            conditions=Transaction(min_locality=1.0),
        )
    assert torch.equal(model(ids).logits[0, -1].argmax(), first)
