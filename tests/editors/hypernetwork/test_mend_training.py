"""Training MEND: the loss of the paper, validation, and edits side by side."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader

from lightning_edit.datamodules.loader import as_list
from lightning_edit.editors.hypernetwork.mend import MEND
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.exceptions import NotBoundError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.metrics import summarise
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import Probe
from tests.editors.hypernetwork.mending import distance, golden_requests, loader, small, trainer

pytestmark = [
    # lightning 2.6.6 asks torch 2.13 in the old way whether a batch is a leaf.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    # These runs have no validation, or resume in a folder that is not empty, on purpose.
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
]


@pytest.mark.slow
def test_training_learns_validates_and_leaves_the_language_model_alone(
    gpt2: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = gpt2
    before = weights_hash(model)
    editor = small(c_edit=1.0)
    editor.bind(model, tokenizer)
    run = trainer(tmp_path, max_epochs=12, accumulate_grad_batches=2)
    metrics = run.validate(editor, loader(0, 2), verbose=False)[0]
    run.fit(editor, loader(0, 2), loader(0, 2))
    after = run.callback_metrics
    assert float(after["val/loss"]) < metrics["val/loss"] - 1
    assert {"train/loss", "train/edit_nll", "train/locality_kl"} < set(after)
    assert {"val/reliability/em@tf", "val/generalization/em@tf", "val/locality/kept@tf"} < set(
        after
    )
    assert metrics["val/locality/kept@tf"] == 1.0
    assert weights_hash(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert int(editor.trained_batches) == 24


def test_logged_loss_is_the_papers(gpt2: tuple[Any, Any], tmp_path: Path) -> None:
    """c_edit · NLL on rephrases + c_loc · KL on probes, by hand and on edited weights."""
    model, tokenizer = gpt2
    editor = small(c_edit=0.3, c_loc=2.0, step_size=1.0)
    editor.bind(model, tokenizer)
    editor.trained_batches += 1
    (request,) = golden_requests(1)
    metrics = trainer(tmp_path).validate(editor, loader(0, 1), verbose=False)[0]
    source = editor.source

    def answers(rows: list[Any]) -> torch.Tensor:
        return answer_logits(model, AnswerRows.pad(rows)).log_softmax(-1)

    outer = [source.tokenise(text, request.target) for text in request.rephrases]
    probes = [source.tokenise(probe.prompt, probe.answers[0]) for probe in request.probes]
    delta = editor.edit(encode_batch(tokenizer, [request]))
    with torch.no_grad():
        old = answers(probes)
        with delta.applied(model):
            new, told = answers(probes), answers(outer)
    targets = torch.tensor([token for _, answer in outer for token in answer])
    nll = -told.gather(1, targets[:, None]).mean()
    kl = (old.exp() * (old - new)).sum(-1).mean()
    assert float(kl) > 1e-3
    assert metrics["val/loss"] == pytest.approx(float(0.3 * nll + 2.0 * kl), rel=1e-4)


def test_side_by_side_is_one_by_one(gpt2: tuple[Any, Any], tmp_path: Path) -> None:
    editor = small(together=False, step_size=1.0)
    editor.bind(*gpt2)
    editor.trained_batches += 1
    requests = golden_requests(4)
    batch = encode_batch(gpt2[1], requests)
    for one, alone in zip(editor.edit_independent(batch), batch.split(), strict=True):
        wanted = editor.edit(alone)
        assert one.request_ids == alone.ids
        for name, update in wanted.weights.items():
            assert distance(one.weights[name].dense(), update.dense()) < 1e-4
    results = [
        trainer(tmp_path).validate(editor, loader(0, 4, size), verbose=False)[0] for size in (1, 4)
    ]
    for name in ("val/reliability/em@tf", "val/generalization/em@tf", "val/locality/kept@tf"):
        assert results[0][name] == pytest.approx(results[1][name])
    assert results[0]["val/locality/kept@tf"] < 1


@pytest.mark.slow
def test_early_stopping_keeps_going_while_the_loss_falls(
    gpt2: tuple[Any, Any], tmp_path: Path
) -> None:
    def epochs(lr: float) -> int:
        editor = small(lr=lr, step_size_lr=lr, c_edit=1.0)
        editor.bind(*gpt2)
        stopping = EarlyStopping(monitor="val/loss", mode="min", patience=1, min_delta=1e-3)
        run = trainer(tmp_path, max_epochs=6, callbacks=[stopping])
        run.fit(editor, loader(0, 2), loader(0, 2))
        return run.current_epoch

    assert epochs(lr=0.0) == 2
    assert epochs(lr=1e-3) > 2


def test_without_a_language_model_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(NotBoundError, match="bind"):
        trainer(tmp_path, max_epochs=1).fit(MEND(), DataLoader([0]))


def test_validation_scores_are_those_of_an_evaluation(
    gpt2: tuple[Any, Any], tmp_path: Path
) -> None:
    """One definition a name: means within a request, by kind, then over requests."""
    model, tokenizer = gpt2
    base = golden_requests(3)
    requests = [
        replace(base[0], rephrases=base[0].rephrases[:1]),
        replace(
            base[1],
            rephrases=(base[1].prompt, *base[1].rephrases),
            probes=(
                *base[1].probes[:3],
                Probe.of("distracting_neighbor", base[0].prompt, "London"),
            ),
        ),
        replace(base[2], rephrases=()),
    ]
    editor = small(together=False, step_size=1.0)
    editor.bind(model, tokenizer)
    editor.trained_batches += 1
    scores: list[ProbeScore] = []
    scorer = Scorer(model, tokenizer, modes=("tf",))
    pristine = Baseline(evaluate(scorer, requests))
    for request in requests:
        delta = editor.edit(encode_batch(tokenizer, [request]))
        with delta.applied(model):
            scores += evaluate(scorer, [request], pristine)
    expected = summarise(scores)
    for size in (1, 2):
        data = DataLoader(requests, batch_size=size, collate_fn=as_list)  # type: ignore[arg-type]
        found = trainer(tmp_path).validate(editor, data, verbose=False)[0]
        for name in ("reliability/em@tf", "generalization/em@tf", "locality/kept@tf"):
            assert found[f"val/{name}"] == pytest.approx(expected[name]), name
    assert 0 < expected["locality/kept@tf"] < 1
