"""SERAC is trained: the paper's loss, effects on facts of other scripts, validation, resume."""

import sys
from pathlib import Path
from random import Random
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.datamodules.loader import StepRequests, as_list
from lightning_edit.editors.base import Editor
from lightning_edit.editors.routing.neighbours import Neighbours
from lightning_edit.editors.routing.scope_batch import ScopeBatch, ScopeSampler
from lightning_edit.editors.routing.serac import SERAC
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.exceptions import CheckpointError, DataError
from lightning_edit.functional.scope import balanced_bce
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Statement
from lightning_edit.metrics import summarise
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest, Probe
from tests.editors.routing.routing import language_model, split

pytestmark = [
    # lightning 2.6.6 asks torch 2.13 in the old way whether a batch is a leaf.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    # These runs have no validation, or resume in a folder that is not empty, on purpose.
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
    # Networks train without dropout, in eval mode.
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers"),
]
LANDS = "Грузия Перу Йемен Чад Фиджи Оман Куба Лаос Бутан Эквадор Замбия Швеция".split()  # noqa: SIM905
TOWNS = "京大阪神戸名古屋広島仙台"


def facts(count: int = 12) -> list[EditRequest]:
    """Facts in Cyrillic with answers in Chinese characters."""
    return [
        EditRequest(
            f"fact-{n}",
            f"Столица {LANDS[n]} —",
            TOWNS[n],
            LANDS[n],
            TOWNS[(n + 1) % 12],
            (f"Главный город {LANDS[n]} —",),
            (
                Probe.of("neighborhood", f"Столица {LANDS[(n + 1) % 12]} —", TOWNS[(n + 3) % 12]),
                Probe.of("other_attribution", f"Река {LANDS[n]} —", TOWNS[(n + 4) % 12]),
            ),
            triple=(LANDS[n], "capital", TOWNS[n]),
        )
        for n in range(count)
    ]


class Facts(EditDataModule):
    """The facts, for training and validation."""

    def load_split(self, split: str) -> list[EditRequest]:
        return facts()


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
        "gradient_clip_val": 100.0,
    }
    return pl.Trainer(**quiet | options)


def small(**options: Any) -> SERAC:
    settings: dict[str, Any] = {
        "classifier_layers": 1,
        "counterfactual_layers": 2,
        "lr": 3e-3,
        "c_edit": 1.0,
        "views": ["rewrite", "rephrase"],
        "hard_neg_exclude": 1,
        "hard_neg_count": 4,
    }
    return SERAC(**settings | options)


def bound(**options: Any) -> tuple[Any, Any, SERAC]:
    model, tokenizer = language_model()
    return model, tokenizer, small(**options).bind(model, tokenizer)


@pytest.mark.slow
def test_training_learns_to_answer_from_an_edit_in_other_scripts(tmp_path: Path) -> None:
    model, tokenizer, editor = bound(
        own_probes=2,
        other_facts=2,
        hard_neg_prob=0.0,
        negatives="batch",
        counterfactual="scratch",
        counterfactual_hidden=32,
        counterfactual_lr=6e-3,
    )
    before = weights_hash(model)
    trainer(tmp_path, max_epochs=75).fit(editor, datamodule=Facts(batch_size=12))
    assert weights_hash(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    new = facts(6)
    handle = editor.edit_model(model, tokenizer, new)
    responder = editor.responder(handle.ledger.in_force)
    asked = [prompt for one in new for prompt in (one.prompt, *one.rephrases)]
    targets = [one.target for one in new for _ in range(2)]
    texts = responder.generate_until([Question(prompt, 4) for prompt in asked])
    right = [text == target for text, target in zip(texts, targets, strict=True)]
    assert sum(right) >= 10, texts
    scores = responder.loglikelihood(
        [Statement(*pair) for pair in zip(asked, targets, strict=True)]
    )
    assert [score.is_greedy for score in scores] == right
    rest = [Question(one.prompt, 4) for one in facts()[6:]]
    rest += [Question(one.probes[1].prompt, 4) for one in new]
    base = ModelResponder(model, tokenizer)
    kept = sum(
        one == two
        for one, two in zip(responder.generate_until(rest), base.generate_until(rest), strict=True)
    )
    assert kept >= 9


def test_the_loss_is_the_papers() -> None:
    _, _, editor = bound(c_edit=0.3, c_loc=2.0, end_answers=False)
    assert editor.scope is not None
    split(editor)
    requests = facts(4)
    batch = ScopeSampler(("rewrite",), 1, 0).sample(requests, Random(0), requests, None)
    terms = editor.terms(batch)
    other = ModelResponder(editor.other, editor.tokenizer)
    told = [Statement(f"{one.prompt} {one.target} {one.prompt}", one.target) for one in requests]
    nlls = [nll for score in other.loglikelihood(told) for nll in score.nlls]
    assert terms["edit_nll"].item() == pytest.approx(sum(nlls) / len(nlls), rel=1e-4)
    with torch.no_grad():
        edits = editor.scope.vectors([editor.scope.text.edit(one) for one in batch.edits])
        rows = [*batch.inside, *batch.outside]
        questions = editor.scope.vectors([editor.scope.text.question(one.prompt) for one in rows])
        scores = editor.scope.compare(questions, edits)
    near, far = scores[:4].diagonal(), scores[4:].diagonal()
    wanted = balanced_bce(torch.cat([near, far]), torch.tensor([1.0] * 4 + [0.0] * 4))
    assert terms["scope_bce"].item() == pytest.approx(float(wanted), rel=1e-4)
    total = 0.3 * terms["edit_nll"] + 2.0 * terms["scope_bce"]
    assert terms["loss"].item() == pytest.approx(total.item())
    terms["loss"].backward()
    for network in (editor.scope, editor.other):
        assert any(
            float(one.grad.norm()) > 0 for one in network.parameters() if one.grad is not None
        )


def test_the_two_networks_train_independently() -> None:
    """Neither term gives the other network a gradient."""
    _, _, editor = bound()
    requests = facts(4)
    batch = ScopeSampler(("rewrite",), 1, 0).sample(requests, Random(0), requests, None)
    terms = editor.terms(batch)
    assert editor.scope is not None
    for term, network in (("edit_nll", editor.scope), ("scope_bce", editor.other)):
        parameters = list(network.parameters())
        found = torch.autograd.grad(terms[term], parameters, allow_unused=True, retain_graph=True)
        assert all(one is None for one in found)


def test_validation_scores_are_those_of_an_evaluation(tmp_path: Path) -> None:
    model, tokenizer, editor = bound(own_probes=2)
    split(editor, facts(1), [probe.prompt for probe in facts(1)[0].all_probes()])
    run = trainer(tmp_path, limit_val_batches=1.0)
    metrics = run.validate(editor, datamodule=Facts(batch_size=5), verbose=False)[0]
    baseline = Baseline(evaluate(Scorer(model, tokenizer, modes=("tf",)), facts()))
    scores = []
    for request in facts():
        handle = editor.edit_model(model, tokenizer, [request])
        responder = editor.responder(handle.ledger.in_force)
        scorer = Scorer(model, tokenizer, modes=("tf",), responder=responder)
        scores += evaluate(scorer, [request], baseline)
        handle.undo()
    wanted = summarise(scores)
    assert 0 < wanted["locality/kept@tf"] < 1
    for name in ("reliability/em@tf", "generalization/em@tf", "locality/kept@tf"):
        assert metrics[f"val/{name}"] == pytest.approx(wanted[name]), name
    assert {"val/loss", "val/edit_nll", "val/scope_bce"} <= set(metrics)


@pytest.mark.bits
@pytest.mark.parametrize("similarity", ["model", pytest.param("encoder", marks=pytest.mark.slow)])
def test_resumed_training_continues_identically(tmp_path: Path, similarity: str) -> None:
    def fit(folder: Path, epochs: int, resume: bool) -> SERAC:
        _, _, editor = bound(decay_steps=20, similarity=similarity)
        saving = ModelCheckpoint(dirpath=folder, save_last=True)
        run = trainer(folder, max_epochs=epochs, callbacks=[saving], enable_checkpointing=True)
        path = "last" if resume else None
        run.fit(editor, datamodule=Facts(batch_size=4), ckpt_path=path)
        return editor

    whole = fit(tmp_path / "whole", 2, resume=False)
    fit(tmp_path / "parts", 1, resume=False)
    resumed = fit(tmp_path / "parts", 2, resume=True)
    assert int(resumed.trained_batches) == 6
    pairs = zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True)
    for (name, one), two in pairs:
        assert torch.equal(one, two), name
    if similarity == "encoder":
        return
    # The checkpoint holds the two networks and Adam's moments, and no language model.
    model, tokenizer = language_model()
    last = tmp_path / "parts/last.ckpt"
    loaded = Editor.load_from_checkpoint(last, weights_only=False)
    used = SERAC(checkpoint=str(last)).bind(model, tokenizer)
    texts = []
    for editor in (resumed, loaded.bind(model, tokenizer), used):
        assert editor.is_trained
        handle = editor.edit_model(model, tokenizer, facts(3))
        responder = editor.responder(handle.ledger.in_force)
        texts.append(responder.generate_until([Question(one.prompt, 5) for one in facts(4)], ()))
    assert texts[0] == texts[1] == texts[2]
    with pytest.raises(CheckpointError, match="no such file"):
        SERAC(checkpoint=str(tmp_path / "absent.ckpt")).bind(model, tokenizer)


@pytest.mark.slow
def test_unsupervised_training_mixes_both_models(tmp_path: Path) -> None:
    model, tokenizer, editor = bound(objective="unsupervised", mixing="soft", scale=0.02)
    requests = facts(4)
    sampler = editor.sampler
    assert (sampler.views, sampler.hard_neg_prob) == (("rewrite",), 0.0)
    batch = sampler.sample(requests, Random(0), requests, None)
    first = editor.terms(batch)
    assert set(first) == {"loss", "edit_nll", "locality_kl"}
    assert float(first["locality_kl"].detach()) >= 0
    run = trainer(tmp_path, max_epochs=8)
    loader = DataLoader(facts(), batch_size=6, collate_fn=as_list)  # type: ignore[arg-type]
    run.fit(editor, loader)
    assert editor.terms(batch)["loss"].item() < first["loss"].item()
    handle = editor.edit_model(model, tokenizer, requests)
    responder = editor.responder(handle.ledger.in_force)
    assert len(responder.loglikelihood([Statement(requests[0].prompt, "京")])) == 1


def test_questions_of_another_edit_are_no_negatives_of_it() -> None:
    requests = facts(3)
    batch = ScopeSampler(("rewrite", "rephrase"), 2, 3).sample(requests, Random(1), facts(), None)
    for row in batch.outside:
        land = row.prompt.removesuffix(" —").split()[-1]
        asks_capital = not row.prompt.startswith("Река")
        known = {n for n, one in enumerate(requests) if one.subject == land and asks_capital}
        assert row.scope == known
    assert {row.edit for row in batch.inside} == {0, 1, 2}
    assert all(row.answer == requests[row.edit].target for row in batch.inside)


def test_hard_negatives_leave_out_the_closest() -> None:
    angles = torch.linspace(0, 1, 12)
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    place = {one.id: number for number, one in enumerate(facts())}
    near = Neighbours(vectors, place, exclude=2, count=3, temperature=0.1)
    drawn = {near.draw(facts()[0], Random(seed)) for seed in range(40)}
    assert drawn == {3, 4, 5}
    assert Neighbours(vectors, place, exclude=11).draw(facts()[0], Random(0)) is None
    sampler = ScopeSampler(("rewrite",), 0, 1, hard_neg_prob=1.0)
    batch = sampler.sample(facts(1), Random(0), facts(), near)
    assert batch.outside[0].prompt.split()[-2] in {LANDS[n] for n in (3, 4, 5)}


def test_neighbours_are_those_of_the_requests_that_are_trained_on() -> None:
    _, _, editor = bound()
    first, second = facts(), facts(6)
    near = editor.collate_requests("train", first).neighbours
    assert near is not None
    assert editor.collate_requests("train", first).neighbours is near
    # The editor keeps what they belong to: the number of a freed object may come again.
    count = sys.getrefcount(first)
    other = editor.collate_requests("train", second).neighbours
    assert other is not None
    assert len(other.vectors) == 6
    assert sys.getrefcount(first) == count - 1


def test_a_step_samples_the_same_from_its_epoch_and_number() -> None:
    _, _, editor = bound()
    requests = facts()
    collate = editor.collate_requests("train", requests)
    batches = [collate(StepRequests(requests[:4], 1, number)) for number in (7, 7, 8)]
    assert all(isinstance(batch, ScopeBatch) for batch in batches)
    assert batches[0] == batches[1] != batches[2]
    with pytest.raises(DataError, match="by epoch and batch index"):
        collate(requests)
    lacking = ScopeSampler(("fact_check",)).sample
    with pytest.raises(DataError, match="no question of the kinds fact_check"):
        lacking(requests[:1], Random(0), requests, None)
