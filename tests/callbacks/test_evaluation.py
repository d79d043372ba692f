"""EditEvaluation in a Trainer of a project that has nothing to do with editing."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_edit.callbacks import EditEvaluation
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.exceptions import ConfigError
from lightning_edit.metrics import summarise
from lightning_edit.storage.jsonl import read_rows
from lightning_edit.types import EditRequest, Probe
from tests.callbacks.foreign import FineTuning, loader, trainer
from tests.forks import Forks
from tests.metrics.outcomes import reference

pytestmark = [
    pytest.mark.bits,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]

REQUESTS: list[dict[str, Any]] = [
    {
        "prompt": "The capital of France is",
        "subject": "France",
        "target": "Lyon",
        "old_target": "Paris",
        "rephrases": ("What is the capital of France?",),
        "probes": [
            {
                "kind": "neighborhood",
                "prompt": "The capital of Italy is",
                "answers": ["Rome"],
                "expect": "unchanged",
            }
        ],
    }
]


def known_facts(module: FineTuning) -> list[dict[str, Any]]:
    """Whatever the untrained model says is what it 'knows'."""
    facts = []
    for prompt in ("The mother tongue of Danielle Darrieux is", "Lyon lies in", "The river"):
        ids = torch.tensor([module.tokenizer(prompt)["input_ids"]])
        new = module.backbone(ids).logits[0, -1].argsort(descending=True)
        texts = [module.tokenizer.decode([int(token)]) for token in new]
        answer = next(t.strip() for t in texts if t.startswith(" ") and t.strip())
        facts.append({"kind": "known_fact", "prompt": prompt, "answers": answer})
    return facts


def callback(module: FineTuning, **changes: Any) -> EditEvaluation:
    settings: dict[str, Any] = {"requests": REQUESTS, "probes": known_facts(module)}
    return EditEvaluation(**(settings | changes))


def test_a_foreign_training_shows_how_facts_drift(tmp_path: Path) -> None:
    module = FineTuning()
    evaluation = callback(module, every_n_steps=4, directory=str(tmp_path / "cases"))
    logger = CSVLogger(tmp_path, name="log")
    run = trainer(tmp_path, evaluation, logger=logger, log_every_n_steps=3)
    run.fit(module, loader(), loader(1))
    values = {name: float(value) for name, value in run.callback_metrics.items()}
    # The fact was taught, at the cost of others.
    assert values["reliability/em@tf"] == 1.0
    assert values["locality/kept@tf"] < 1.0
    assert values["known/em@tf"] < 1.0
    assert values["drift.known/nll@tf"] > 0
    assert evaluation.baseline is not None
    before = summarise(evaluation.baseline.scores)
    assert before["reliability/em@tf"] == 0.0
    for name in ("known/em@tf", "known/nll@tf", "locality/nll@tf"):
        drift = values[name] - before[name]
        assert values[f"drift.{name}"] == pytest.approx(drift, abs=1e-5)
    # Every evaluation is in the log, also where the trainer itself does not log.
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    place = header.index("locality/nll@tf")
    logged = {
        int(line.split(",")[header.index("step")]) for line in lines[1:] if line.split(",")[place]
    }
    assert logged == {0, 4, 8, 12, 16}
    # Rows on disk give the same numbers.
    rows = read_rows(tmp_path / "cases" / "step-00000016.jsonl")
    expected = reference_of(rows)
    assert {n: values[n] for n in expected} == pytest.approx(expected, abs=1e-5)


def reference_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {
        name: value
        for name, value in reference([ProbeScore.from_row(row) for row in rows]).items()
        if not name.startswith(("generalization", "locality.", "portability"))
    }


def test_training_is_the_same_with_and_without_the_callback(tmp_path: Path) -> None:
    weights = []
    for watched in (False, True):
        module = FineTuning(family="gpt2", resid_pdrop=0.3)
        callbacks = [callback(module, every_n_steps=1)] if watched else []
        pl.seed_everything(0, verbose=False)
        run = trainer(tmp_path, *callbacks, max_epochs=1)
        run.fit(module, loader(), loader(1))
        weights.append(nn.utils.parameters_to_vector(module.parameters()).detach())
        assert module.backbone.training
    assert torch.equal(*weights)


def test_half_precision_module(tmp_path: Path) -> None:
    module = FineTuning()
    evaluation = callback(module)
    run = trainer(tmp_path, evaluation, max_epochs=1, precision="bf16-true")
    run.fit(module, loader(), loader(1))
    assert module.backbone.dtype == torch.bfloat16
    assert 0 <= run.callback_metrics["locality/kept@tf"] <= 1


@pytest.mark.slow
def test_resume_compares_with_the_model_before_the_first_step(tmp_path: Path) -> None:
    module = FineTuning()
    facts = known_facts(module)
    first = EditEvaluation(REQUESTS, facts)
    half = trainer(tmp_path, first, max_epochs=2)
    half.fit(module, loader(), loader(1))
    half.save_checkpoint(tmp_path / "half.ckpt")

    second = EditEvaluation(REQUESTS, facts)
    resumed = trainer(tmp_path, second)
    resumed.fit(FineTuning(), loader(), loader(1), ckpt_path=tmp_path / "half.ckpt")
    assert first.baseline is not None
    assert second.baseline is not None
    assert second.baseline.scores == first.baseline.scores

    whole = trainer(tmp_path, EditEvaluation(REQUESTS, facts))
    whole.fit(FineTuning(), loader(), loader(1))
    names = {name for name in whole.callback_metrics if "@" in name}
    assert len(names) > 10
    for name in names:
        assert resumed.callback_metrics[name] == whole.callback_metrics[name]


def test_a_checkpoint_without_a_baseline_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain_run = trainer(tmp_path, max_epochs=1)
    plain_run.fit(FineTuning(), loader(), loader(1))
    plain_run.save_checkpoint(tmp_path / "plain.ckpt")
    module = FineTuning()
    late = trainer(tmp_path, callback(module), max_epochs=2)
    with caplog.at_level("WARNING", logger="lightning_edit"):
        late.fit(module, loader(), loader(1), ckpt_path=tmp_path / "plain.ckpt")
    assert "plain.ckpt was written without EditEvaluation" in caplog.text


def test_a_file_of_facts_and_typed_requests(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps({"prompt": "The capital of Italy is", "target": "Arles"}) + "\n")
    request = EditRequest.from_dict({"id": "france", **REQUESTS[0]})
    evaluation = EditEvaluation(
        [request],
        [Probe.of("other_task", "Lyon lies in", "France")],
        data=str(path),
        prefix="facts/",
    )
    run = trainer(tmp_path, evaluation, max_epochs=1)
    run.fit(FineTuning(), loader(), loader(1))
    assert run.callback_metrics["facts/reliability/n"] == 2
    assert run.callback_metrics["facts/locality/n"] == 2


def test_errors_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to ask"):
        trainer(tmp_path, EditEvaluation()).fit(FineTuning(), loader(), loader(1))
    with pytest.raises(ConfigError, match="lacks answers, kind"):
        EditEvaluation(probes=[{"prompt": "x"}])

    two = FineTuning()
    two.judge = FineTuning().backbone
    with pytest.raises(ConfigError, match="holds 2 Hugging Face models: backbone, judge"):
        trainer(tmp_path, callback(two)).fit(two, loader(), loader(1))
    named = trainer(tmp_path, callback(two, model_attribute="judge"), max_epochs=1)
    named.fit(two, loader(), loader(1))
    with pytest.raises(ConfigError, match="has no module 'jugde'"):
        trainer(tmp_path, callback(two, model_attribute="jugde")).fit(two, loader(), loader(1))

    mute = FineTuning()
    evaluation = callback(mute)
    mute.tokenizer = None
    with pytest.raises(ConfigError, match="no tokenizer found in FineTuning"):
        trainer(tmp_path, evaluation).fit(mute, loader(), loader(1))


class Sharded(FineTuning):
    """The same module in parts: its weights lie on both processes."""

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for block in self.backbone.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(self.backbone, mesh=mesh)


def measure(root: str, devices: int, strategy: Any) -> None:
    module = (Sharded if strategy == "sharded" else FineTuning)(lr=0.0)  # measuring is compared
    evaluation = callback(module, directory=f"{root}/cases")
    if strategy == "sharded":
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    run = trainer(Path(root), evaluation, max_epochs=1, devices=devices, strategy=strategy)
    run.fit(module, loader(), loader(1))
    values = {name: float(value) for name, value in run.callback_metrics.items() if "/" in name}
    Path(root, f"rank-{run.global_rank}.json").write_text(json.dumps(values))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, forks: Forks) -> None:
    found = {}
    for strategy, devices in (("auto", 1), ("ddp", 2), ("sharded", 2)):
        root = tmp_path / strategy
        root.mkdir()
        forks.run(measure, root, devices, strategy, ranks=devices)
        ranks = [json.loads((root / f"rank-{rank}.json").read_text()) for rank in range(devices)]
        assert all(values == ranks[0] for values in ranks)
        rows = read_rows(max((root / "cases").glob("step-*.jsonl")))
        found[strategy] = ranks[0], sorted(ProbeScore.from_row(row).key for row in rows)
    for strategy in ("ddp", "sharded"):
        assert found[strategy][0] == pytest.approx(found["auto"][0], abs=1e-5)
        assert found[strategy][1] == found["auto"][1]
