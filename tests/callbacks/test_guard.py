"""CollapseGuard: what breaks the model is taken back, or ends the run; resuming changes nothing."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from lightning_edit.callbacks import (
    CollapseCallback,
    CollapseGuard,
    DriftCallback,
    OverfittingCallback,
)
from lightning_edit.callbacks.context import EvalContext
from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import ConfigError, NotFiniteError
from lightning_edit.report.table import render
from lightning_edit.session.trainer import EditTrainer
from tests.callbacks.foreign import FineTuning, loader, trainer
from tests.callbacks.planted import Destroys, Overflows, toy_texts, without_times
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer

pytestmark = [
    pytest.mark.bits,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]

TEXTS = toy_texts(6)


def guard(**options: Any) -> CollapseGuard:
    return CollapseGuard(texts=TEXTS, **options)


def edit(
    run: Path,
    *callbacks: Any,
    at: tuple[str, ...] = ("fact-4",),
    scale: float = 30.0,
    fail_at: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    editor = Destroys(ToyEditor(fail_at), at, scale).bind(toy_model(), toy_tokenizer())
    edits = EditTrainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, callbacks=list(callbacks)
    )
    options = {"checkpoint_every": 3, "modes": ("tf",), "eval_at": [1, 5, "end"]} | options
    return edits.edit(editor, ToyData(12), run=str(run), **options)


def in_force(run: Path) -> list[str]:
    return [name for entry in Journal(run / "ledger").active() for name in entry.ids]


@pytest.mark.slow
def test_the_stream_goes_on_without_the_edit_that_broke_the_model(tmp_path: Path) -> None:
    ruined = edit(tmp_path / "ruined", CollapseCallback(texts=TEXTS, every_n_commits=1))
    saved = edit(tmp_path / "saved", CollapseCallback(texts=TEXTS, every_n_commits=1), guard())
    last = ruined["points"][-1]["metrics"]
    assert last["collapse/perplexity_ratio"] > 10
    assert last["collapse/broken"] == 1.0
    assert last["collapse/first_broken"] == 5.0
    assert saved["points"][-1]["metrics"]["collapse/perplexity_ratio"] < 2
    assert saved["points"][-1]["metrics"]["collapse/rolled_back"] == 1
    assert in_force(tmp_path / "saved") == [f"fact-{i}" for i in range(12) if i != 4]
    (event,) = saved["events"]
    assert event["by"] == "CollapseGuard"
    assert event["after"] == 5
    assert event["event"]["edits"] == ["fact-4"]
    assert "times that of the pristine model" in event["event"]["reason"]
    lines = (tmp_path / "saved" / "ledger" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["by"] for line in lines if "CollapseGuard" in line] == [
        "CollapseGuard"
    ]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(render(saved))
    assert "CollapseGuard took back fact-4 after 5 edits" in console.export_text()


def test_a_guard_ends_the_run_where_it_is_told_to(tmp_path: Path) -> None:
    results = edit(tmp_path, guard(action="stop"))
    assert results["status"] == "interrupted"
    assert [point["after"] for point in results["points"]] == [0, 1, 5]
    assert results["events"][0]["event"]["action"] == "stop"
    assert in_force(tmp_path) == [f"fact-{i}" for i in range(5)]
    resumed = edit(tmp_path, guard(action="stop"), ckpt_path="last")
    assert without_times(resumed) == without_times(results)
    assert in_force(tmp_path) == [f"fact-{i}" for i in range(5)]


def test_an_edit_that_is_not_finite_needs_a_guard(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="not finite"):
        edit(tmp_path / "bare", scale=math.inf)
    results = edit(tmp_path / "guarded", guard(), scale=math.inf)
    assert "not finite" in results["events"][0]["event"]["reason"]
    assert len(in_force(tmp_path / "guarded")) == 11


@pytest.mark.parametrize(
    ("protocol", "size"), [("sequential", 1), ("sequential", 3), ("single", 4)]
)
def test_a_search_that_overflows_needs_a_guard(tmp_path: Path, protocol: str, size: int) -> None:
    def results(name: str, *callbacks: Any) -> dict[str, Any]:
        editor = Overflows(ToyEditor(), ("fact-4",)).bind(toy_model(), toy_tokenizer())
        edits = EditTrainer(
            logger=False, accelerator="cpu", enable_progress_bar=False, callbacks=list(callbacks)
        )
        options: dict[str, Any] = {"modes": ("tf",), "protocol": protocol, "batch_size": size}
        return edits.edit(editor, ToyData(8), run=str(tmp_path / name), **options)

    with pytest.raises(NotFiniteError, match="the weight was left as it was"):
        results("bare")
    found = results("guarded", guard())
    (event,) = found["events"]
    # Requests that are solved together are one commit.
    together = ["fact-3", "fact-4", "fact-5"] if size == 3 else ["fact-4"]
    assert event["event"]["edits"] == together
    assert "not finite in torch.float32" in event["event"]["reason"]
    assert found["status"] == "complete"
    kept = [f"fact-{i}" for i in range(8) if f"fact-{i}" not in together]
    assert in_force(tmp_path / "guarded") == ([] if protocol == "single" else kept)


def broken_model() -> Any:
    """A model with finite weights, none of whose outputs is a number."""
    model = toy_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(3e38)
    assert all(bool(torch.isfinite(value).all()) for value in model.parameters())
    return model


@pytest.mark.parametrize(
    "callback", [guard(), guard(max_perplexity=50.0), CollapseCallback(texts=TEXTS, generations=0)]
)
def test_a_model_that_is_broken_before_is_no_baseline(callback: Any) -> None:
    with pytest.raises(NotFiniteError, match="own outputs are not finite on 6 of 6 texts"):
        callback.measure(EvalContext(0, broken_model(), toy_tokenizer()))


def test_outputs_that_are_not_finite_break_every_bound() -> None:
    watch, collapse = guard(max_perplexity_ratio=1e40), CollapseCallback(texts=TEXTS, generations=0)
    collapse.max_perplexity_ratio = 1e40
    whole = EvalContext(0, toy_model(), toy_tokenizer())
    collapse.before = dict(watch.measure(whole).values) | dict(collapse.measure(whole).values)
    broken = EvalContext(1, broken_model(), toy_tokenizer())
    assert "not finite" in str(watch._broken_perplexity_bound(broken))
    assert collapse.measure(broken).values["collapse/broken"] == 1.0
    assert watch._broken_perplexity_bound(whole) is None


def test_of_several_commits_only_those_from_the_bad_one_on_are_taken_back(tmp_path: Path) -> None:
    results = edit(tmp_path, guard(every_n_commits=4), at=("fact-5",))
    (event,) = results["events"]
    assert event["event"]["edits"] == ["fact-5", "fact-6", "fact-7"]
    assert in_force(tmp_path) == [f"fact-{i}" for i in range(12) if i not in (5, 6, 7)]


def test_a_floor_of_reliability(tmp_path: Path) -> None:
    # The toy editor never hits its target, so nothing stays.
    results = edit(tmp_path, guard(max_perplexity_ratio=None, min_reliability=0.5), at=())
    assert len(results["events"]) == 12
    assert in_force(tmp_path) == []
    assert "0% of the new edits are right" in results["events"][0]["event"]["reason"]


def test_single_edits_are_taken_back_once(tmp_path: Path) -> None:
    callbacks = guard(), CollapseCallback(texts=TEXTS, generations=2)
    results = edit(tmp_path, *callbacks, protocol="single")
    assert results["points"][-1]["metrics"]["collapse/rolled_back"] == 1
    assert in_force(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("fail_at", ["fact-2", "fact-6"])
def test_a_resumed_run_decides_as_an_uninterrupted_one(tmp_path: Path, fail_at: str) -> None:
    def callbacks() -> list[Any]:
        return [
            guard(every_n_commits=2),
            DriftCallback(texts=TEXTS),
            CollapseCallback(texts=TEXTS, generations=2, max_new_tokens=5, every_n_commits=1),
            OverfittingCallback(modes=("tf",)),
        ]

    whole = edit(tmp_path / "whole", *callbacks())
    with pytest.raises(RuntimeError, match="planted"):
        edit(tmp_path / "cut", *callbacks(), fail_at=fail_at)
    resumed = edit(tmp_path / "cut", *callbacks(), ckpt_path="last")
    assert resumed["points"] == whole["points"]
    assert resumed["events"] == whole["events"]
    assert len(whole["points"][-1]["metrics"]) > 20
    both = [(tmp_path / run / "measures.jsonl").read_bytes() for run in ("cut", "whole")]
    assert both[0] == both[1]


def test_a_foreign_training_that_destroys_its_model_is_ended(tmp_path: Path) -> None:
    texts = ["The capital of Italy is Rome", "Lyon lies in France", "The river is in Rome"]
    watch = CollapseGuard(texts=texts, every_n_steps=1)
    run = trainer(tmp_path, watch, CollapseCallback(texts=texts, generations=2), max_epochs=50)
    run.fit(FineTuning(lr=0.5), loader(), loader(1))
    assert watch.stopped
    assert run.global_step < 50
    calm = CollapseGuard(texts=texts, every_n_steps=1)
    run = trainer(tmp_path, calm, max_epochs=2)
    run.fit(FineTuning(lr=1e-5), loader(), loader(1))
    assert not calm.stopped
    assert run.global_step == 8


def test_errors_say_what_to_give() -> None:
    with pytest.raises(ConfigError, match="has no bound"):
        CollapseGuard(max_perplexity_ratio=None)
    with pytest.raises(ConfigError) as found:  # all of them at once
        CollapseGuard(float("nan"), min_reliability=95.0, every_n_commits=0, limit=0)
    said = str(found.value)
    assert "`max_perplexity_ratio` must be above 0, or None, got nan" in said
    assert "`min_reliability` must be a share from 0 to 1, or None, got 95.0" in said
    assert "`limit` must be 1 or more, got 0" in said
    assert "`every_n_commits` must be 1 or more, got 0" in said


def test_states_are_small(tmp_path: Path) -> None:
    edit(tmp_path, guard(), DriftCallback(texts=TEXTS), CollapseCallback(texts=TEXTS))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(json.dumps(saved["callbacks"], default=lambda t: t.tolist())) < 40_000
