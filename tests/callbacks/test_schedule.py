"""In `validate`, `test`, `predict`, and in trainings without validation: nothing is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from peft import LoraConfig, get_peft_model

from lightning_edit.callbacks import (
    CollapseCallback,
    CollapseGuard,
    DriftCallback,
    EditEvaluation,
    EfficiencyCallback,
    LocalityCallback,
    MeasurementCallback,
    OverfittingCallback,
    PortabilityCallback,
    ReportCallback,
    RippleCallback,
)
from lightning_edit.exceptions import ConfigError
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditRequest
from lightning_edit.types.facts import Fact
from tests.callbacks.foreign import FineTuning, loader, trainer
from tests.forks import Forks
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]
FACT = {"kind": "known_fact", "prompt": "The capital of France is", "answers": "Lyon"}
FACTS = [
    Fact(f"land{i}", "capital", f"city{i}", f"the capital of land{i} is", (f"city{i}",), f"land{i}")
    for i in range(20, 30)
]
TEXTS = [f"the capital of land{i} is city{i}" for i in range(3)]


class WithTest(FineTuning):
    """Somebody's module that can be tested."""

    def test_step(self, batch: list[str], batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch), batch_size=1)


class SplitData(ToyData):
    """Facts whose splits differ; a validation split may be missing."""

    def __init__(self, val: int = 3) -> None:
        super().__init__(8)
        self.val = val

    def load_split(self, split: str) -> list[EditRequest]:
        parts = {"train": slice(0, 4), "val": slice(4, 4 + self.val), "test": slice(0, 8)}
        return toy_requests(8)[parts[split]]


def test_a_training_without_validation_is_measured_after_each_epoch(tmp_path: Path) -> None:
    facts = EditEvaluation(probes=[FACT], modes=("tf",), directory=str(tmp_path / "rows"))
    best = ModelCheckpoint(tmp_path / "best", monitor="known/nll@tf", save_top_k=-1)
    stop = EarlyStopping("known/nll@tf", patience=10)
    run = trainer(tmp_path, stop, facts, best, enable_checkpointing=True)
    run.fit(FineTuning(), loader())
    assert run.callback_metrics["drift.known/em@tf"] == 1
    assert len(best.best_k_models) == 4
    steps = [int(path.stem.removeprefix("step-")) for path in (tmp_path / "rows").iterdir()]
    assert sorted(steps) == [0, 4, 8, 12, 16]


def test_a_training_that_ends_within_an_epoch_is_measured_at_its_end(tmp_path: Path) -> None:
    facts = EditEvaluation(probes=[FACT], modes=("tf",))
    run = trainer(tmp_path, facts, max_steps=3, val_check_interval=4)
    run.fit(FineTuning(), loader(), loader(1))
    assert facts._last_step == 3
    assert run.callback_metrics["drift.known/nll@tf"] != 0


@pytest.mark.parametrize("every", [None, 1000])
def test_a_callback_that_never_measured_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, every: int | None
) -> None:
    facts = EditEvaluation(probes=[FACT], modes=("tf",), on_validation=False, every_n_steps=every)
    trainer(tmp_path, facts, max_epochs=1).fit(FineTuning(), loader(), loader(1))
    (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("lightning_edit")]
    assert "EditEvaluation measured nothing after the first of 4 steps" in said
    assert "on_validation=True, or every_n_steps of at most 4" in said


def test_a_training_that_is_measured_is_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = EditEvaluation(probes=[FACT], modes=("tf",), on_validation=False, every_n_steps=2)
    trainer(tmp_path, facts, max_epochs=1).fit(FineTuning(), loader())
    assert not [r for r in caplog.records if r.name.startswith("lightning_edit")]


def test_validate_and_test_of_somebodys_module(tmp_path: Path) -> None:
    module = WithTest()
    facts = EditEvaluation(probes=[FACT], modes=("tf",), directory=str(tmp_path / "rows"))
    run = trainer(tmp_path, facts, CollapseCallback(TEXTS, generations=1, max_new_tokens=2))
    (before,) = run.validate(module, loader(1), verbose=False)
    assert before["known/em@tf"] == 0
    assert before["collapse/perplexity"] > 1
    # The first measurement is the baseline of the training, and of a test after it.
    run.fit(module, loader())
    (after,) = run.test(module, loader(1), verbose=False)
    assert after["known/em@tf"] == after["drift.known/em@tf"] == 1
    assert after["collapse/perplexity_ratio"] != 1
    names = {path.name for path in (tmp_path / "rows").iterdir()}
    assert {"validate-00000000.jsonl", "test-00000016.jsonl"} <= names


@pytest.mark.parametrize("every", [None, 3])
def test_each_training_from_its_first_step_is_a_run_of_its_own(
    tmp_path: Path, every: int | None
) -> None:
    def fit(watcher: MeasurementCallback, module: FineTuning, count: int) -> dict[str, float]:
        run = trainer(tmp_path, watcher, max_epochs=1)
        run.fit(module, loader(count), loader(1))
        assert watcher._last_step == run.global_step
        return watcher.values

    def watching() -> MeasurementCallback:
        return EditEvaluation(probes=[FACT], modes=("tf",), every_n_steps=every)

    used, module = watching(), FineTuning()
    first = fit(used, module, 16)
    again = fit(used, FineTuning(), 16)
    assert again == first == fit(watching(), FineTuning(), 16)
    # A second training of a model begins with the model that it gets.
    second = fit(used, module, 16)
    assert used.before is not None
    assert used.before["known/nll@tf"] == first["known/nll@tf"] != second["known/nll@tf"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_lora_training_of_mlps_is_watched(tmp_path: Path) -> None:
    module = FineTuning()
    options = LoraConfig(target_modules=["up_proj", "down_proj", "q_proj"], r=2)
    module.backbone = get_peft_model(module.backbone, options)
    drift = DriftCallback(TEXTS)
    trainer(tmp_path, drift, CollapseCallback(TEXTS, generations=1, max_new_tokens=2)).fit(
        module, loader(), loader(1)
    )
    assert drift.values["drift/hidden_l2"] > 0
    assert drift.values["drift/l2_growth"] > 1


def test_what_only_validates_adds_no_point_to_a_trend(tmp_path: Path) -> None:
    drift, module = DriftCallback(TEXTS), WithTest()
    trainer(tmp_path, drift).fit(module, loader(), loader(1))
    after = drift.values
    for _ in range(2):
        run = trainer(tmp_path, drift)
        run.validate(module, loader(1), verbose=False)
        run.test(module, loader(1), verbose=False)
        assert drift.values == after
    assert drift._last_step == 16


def every_callback() -> list[MeasurementCallback]:
    return [
        EditEvaluation(modes=("tf",)),
        DriftCallback(TEXTS),
        CollapseCallback(TEXTS, generations=1, max_new_tokens=2),
        OverfittingCallback(modes=("tf",)),
        EfficiencyCallback(),
        LocalityCallback(other_task=2, modes=("tf",)),
        PortabilityCallback(probes=[FACT | {"kind": "one_hop"}], modes=("tf",)),
        RippleCallback(facts=FACTS, size=2, known_only=False),
        CollapseGuard(texts=TEXTS),
        ReportCallback(),
    ]


def test_every_callback_scores_an_edited_model(tmp_path: Path) -> None:
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    data = SplitData()
    callbacks = every_callback()
    run = trainer(tmp_path, *callbacks)
    (pristine,) = run.test(editor, data, verbose=False)
    assert pristine["reliability/n"] == 8
    edits = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    options: dict[str, Any] = {"modes": ("tf",), "protocol": "batch"}
    results = edits.edit(editor, data, run=str(tmp_path / "run"), **options)
    (edited,) = run.test(editor, data, verbose=False)
    wanted = results["points"][-1]["metrics"]
    for name in ("reliability/nll@tf", "locality/kept@tf", "generalization/em@tf"):
        assert edited[name] == pytest.approx(wanted[name], rel=1e-5)
    assert edited["collapse/perplexity_ratio"] != 1
    assert edited["drift/hidden_l2"] > 0
    assert "overfitting.subject_only/dp@tf" in edited
    assert (tmp_path / "measures.json").exists()
    # The split that is validated has other questions, and so a baseline of its own.
    (validated,) = run.validate(editor, data, verbose=False)
    assert validated["reliability/n"] == 3


def test_callbacks_of_an_edit_run_score_a_later_test(tmp_path: Path) -> None:
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    watch = EditEvaluation(modes=("tf",))
    edits = EditTrainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, callbacks=[watch]
    )
    results = edits.edit(editor, SplitData(), run=str(tmp_path / "run"), modes=("tf",))
    (tested,) = edits.test(editor, SplitData(), verbose=False)
    wanted = results["points"][-1]["metrics"]["locality/kept@tf"]
    assert tested["locality/kept@tf"] == pytest.approx(wanted)


def test_predict_returns_the_models_answers(tmp_path: Path) -> None:
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    batches = trainer(tmp_path).predict(editor, SplitData())
    assert batches is not None
    rows: list[Any] = [row for batch in batches for row in batch]
    assert [row["id"] for row in rows] == [f"fact-{i}" for i in range(8)]
    edited = editor.edit_model(editor.language_model, editor.tokenizer, toy_requests(1))
    edited.undo()
    for row in rows[:3]:
        assert row["answer"] == edited.generate(row["prompt"], max_new_tokens=16)


def test_what_has_no_score_of_its_own_says_what_to_give(tmp_path: Path) -> None:
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    for loop in (trainer(tmp_path).validate, trainer(tmp_path).test):
        with pytest.raises(ConfigError, match=r"such as EditEvaluation\(\)"):
            loop(editor, SplitData())


@pytest.mark.filterwarnings("ignore:Total length of .* is zero")
def test_an_empty_split_is_not_scored_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    trainer(tmp_path, EditEvaluation()).validate(editor, SplitData(val=0))
    assert "EditEvaluation measured nothing, since `validate` had no batch" in caplog.text


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (EditEvaluation, {"batch_size": 0, "modes": (), "max_new_tokens": 0}),
        (CollapseCallback, {"limit": 0, "top_k": 0, "every_n_commits": 0, "max_tokens": 1}),
        (DriftCallback, {"limit": 0, "batch_size": 0}),
        (OverfittingCallback, {"limit": 0, "modes": (), "scored_together": 0}),
        (RippleCallback, {"size": 0, "batch_size": 0}),
    ],
)
def test_wrong_arguments_are_named_all_at_once(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**wrong)
    for name, value in wrong.items():
        assert f"`{name}` must be" in str(caught.value)
        assert repr(value) in str(caught.value)
    with pytest.raises(ConfigError, match="`every_n_steps` must be 1 or more"):
        kind(every_n_steps=0)


def measure(root: str, devices: int) -> None:
    run = trainer(
        Path(root), *every_callback(), devices=devices,
        strategy="ddp" if devices > 1 else "auto", use_distributed_sampler=False,
    )  # fmt: skip
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    (found,) = run.test(editor, SplitData(), verbose=False)
    found = {name: value for name, value in found.items() if not name.endswith("_bytes")}
    Path(root, f"rank-{run.global_rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path, forks: Forks) -> None:
    found: dict[int, list[dict[str, float]]] = {}
    for devices in (1, 2):
        root = tmp_path / str(devices)
        root.mkdir()
        forks.run(measure, root, devices, ranks=devices)
        found[devices] = [
            json.loads((root / f"rank-{rank}.json").read_text()) for rank in range(devices)
        ]
    assert found[2][0] == found[2][1]
    assert found[2][0] == pytest.approx(found[1][0], rel=1e-4, abs=1e-6)
    assert len(found[1][0]) > 30
