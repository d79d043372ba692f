"""KE: constrained training that resumes exactly, single edits, the loop, and the ports' loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors import FTM, KE
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.functional.hypernet import drift_kl
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest
from tests.editors.hypernetwork.mending import trainer
from tests.forks import Forks
from tests.models.tiny import build_tiny, build_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

CITIES = ("Rome", "Paris", "Lyon", "Arles", "Avignon")


def facts(count: int) -> list[EditRequest]:
    return [
        EditRequest(
            f"e{number}",
            f"The capital of land {number} is",
            CITIES[number % 5],
            old_target=CITIES[(number + 1) % 5],
            rephrases=(f"Land {number} has its capital in",),
        )
        for number in range(count)
    ]


class Facts(EditDataModule):
    """Six facts to train on, two to validate."""

    def load_split(self, split: str) -> list[EditRequest]:
        return {"train": facts(6), "val": facts(8)[6:]}.get(split, [])


def small(family: str = "llama", **options: Any) -> Any:
    wanted = {"hidden": 8, "condition": 16, "lr": 1e-2, "warmup_steps": 2, "other_facts": 1}
    editor = KE(**wanted | options)  # type: ignore[arg-type]
    return editor.bind(build_tiny(family), build_tokenizer())


def fit(folder: Path, epochs: int, resume: bool = False, **options: Any) -> Any:
    editor = small(**options)
    saving = ModelCheckpoint(dirpath=folder, save_last=True)
    run = trainer(folder, max_epochs=epochs, callbacks=[saving], enable_checkpointing=True)
    run.fit(editor, datamodule=Facts(batch_size=2), ckpt_path="last" if resume else None)
    return editor


@pytest.mark.slow
@pytest.mark.bits
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Network, both optimisers, multipliers, margins and learning rates."""
    options = {"divergences": "both", "anneal_above": -1.0, "decay_steps": 50}
    whole = fit(tmp_path / "whole", 3, **options)
    fit(tmp_path / "parts", 1, **options)
    resumed = fit(tmp_path / "parts", 3, resume=True, **options)
    assert int(resumed.trained_batches) == resumed.trainer.global_step == 9
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert {f"constraints.{n}.{k}" for n in ("kl", "lp") for k in ("alpha", "margin")} <= set(ours)
    for name, value in theirs.items():
        assert torch.equal(value, ours[name]), name
    for one, two in zip(whole.trainer.optimizers, resumed.trainer.optimizers, strict=True):
        assert one.param_groups[0]["lr"] == two.param_groups[0]["lr"]
    # Three validations succeed "above -1".
    assert float(whole.constraints["kl"].margin) == pytest.approx(1e-3 * 0.8**3)
    assert not torch.equal(theirs["constraints.kl.alpha"], torch.ones(()))


def test_training_leaves_the_language_model_alone(tmp_path: Path) -> None:
    editor = small()
    model = editor.language_model
    before = weights_hash(model)
    table = editor.reader.embedding
    assert table.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    start = table.detach().clone()
    trainer(tmp_path, max_epochs=1).fit(editor, datamodule=Facts(batch_size=2))
    assert not torch.equal(table, start)
    assert weights_hash(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_it_learns_to_edit_under_the_constraint(tmp_path: Path) -> None:
    editor = small(layers=[1], max_scale=10.0, margin_kl=0.5, smoothing=0.0, any_wording=True)
    data = Facts(batch_size=3)
    before = trainer(tmp_path).validate(editor, datamodule=data, verbose=False)[0]
    run = trainer(tmp_path, max_epochs=60, limit_val_batches=0)
    run.fit(editor, datamodule=data)
    after = run.callback_metrics
    assert float(after["train/edit_nll"]) < before["val/edit_nll"] / 3
    assert float(after["train/locality_kl"]) < 1.5


@pytest.mark.slow
def test_multipliers_rise_while_the_constraint_is_broken_and_never_fall_below_zero(
    tmp_path: Path,
) -> None:
    broken = small(margin_kl=0.0, margin_kl_floor=0.0, max_scale=30.0, lr=1e-9, warmup_steps=0)
    trainer(tmp_path, max_epochs=2).fit(broken, datamodule=Facts(batch_size=2))
    assert float(broken.constraints["kl"].alpha.detach()) > 1.2
    kept = small(margin_kl=1e3, lr=1e-9, lr_alpha=0.5, warmup_steps=0)
    trainer(tmp_path, max_epochs=3).fit(kept, datamodule=Facts(batch_size=2))
    assert float(kept.constraints["kl"].alpha.detach()) == 0.0


@pytest.mark.slow
def test_margins_shrink_only_when_edits_succeed_and_never_below_their_floor(
    tmp_path: Path,
) -> None:
    failing = small(anneal_above=0.99)
    trainer(tmp_path, max_epochs=1).fit(failing, datamodule=Facts(batch_size=2))
    assert float(failing.constraints["kl"].margin) == pytest.approx(1e-3)
    floored = small(anneal_above=-1.0, margin_kl_floor=9e-4)
    run = trainer(tmp_path, max_epochs=2)
    run.validate(floored, datamodule=Facts(), verbose=False)
    assert float(floored.constraints["kl"].margin) == pytest.approx(1e-3)  # no training
    run.fit(floored, datamodule=Facts(batch_size=2))
    assert float(floored.constraints["kl"].margin) == pytest.approx(9e-4)


def test_the_plain_loss_is_the_ports() -> None:
    editor = small(loss="plain", c_edit=0.3, c_loc=2.0)
    assert editor.automatic_optimization
    batch = encode_batch(editor.prompts, facts(2))
    rows = tuple((n, (e.prompt_ids, e.target_ids)) for n, e in enumerate(batch.encoded))
    padded, logits = editor.logits_after(batch, rows)
    told = editor.terms(logits, padded.targets, logits, rows)
    nll = torch.nn.functional.cross_entropy(logits, padded.targets)
    kl = drift_kl(editor.base_logits(rows), logits)
    torch.testing.assert_close(told["loss"], 0.3 * nll + 2.0 * kl)
    assert not any(parameter.requires_grad for parameter in editor.constraints.parameters())
    adam = editor.configure_optimizers()
    assert isinstance(adam, torch.optim.Adam)
    assert not {id(p) for p in editor.constraints.parameters()} & {
        id(p) for group in adam.param_groups for p in group["params"]
    }


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_by_default_every_matrix_of_the_blocks_is_edited(family: str) -> None:
    editor = small(family)
    edited = {handle.name for handle in editor.weights}
    model = editor.language_model
    matrices = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and not any(w in name for w in ("embed", "wte", "wpe", "lm_head"))
    }
    assert edited == matrices
    two = small(family, layers=[0])
    assert {handle.name for handle in two.weights} < edited
    assert all(".0." in handle.name for handle in two.weights)


def test_the_condition_names_what_the_model_says_where_no_old_answer_is_given() -> None:
    editor = small()
    given, asked = facts(1)[0], EditRequest("x", "The river", "Arles")
    texts = editor.condition_texts(encode_batch(editor.prompts, [given, asked]))
    assert texts[0] == "Paris >> Rome || The capital of land 0 is"
    ids = editor.tokenizer("The river", return_tensors="pt").input_ids
    said = editor.language_model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )[0, ids.shape[1] :]
    text = editor.tokenizer.decode(said, skip_special_tokens=True)
    old = texts[1].partition(" >> ")[0]
    assert text.strip().startswith(old)
    assert texts[1].endswith(">> Arles || The river")


def test_a_batch_is_written_one_by_one() -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer()
    editor: Any = KE(hidden=8, condition=16)
    before = weights_hash(model)
    edited = editor.edit_model(model, tokenizer, facts(3))
    assert [delta.request_ids for delta in edited.ledger.in_force] == [("e0",), ("e1",), ("e2",)]
    edited.undo("e1").undo()
    assert weights_hash(model) == before


def test_the_loop_adds_the_same_update_until_the_answer_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editor = small(rounds=5, modules=["model.layers.1.mlp.down_proj"])
    model, tokenizer = editor.language_model, editor.tokenizer
    batch = encode_batch(editor.prompts, facts(1))
    tuned = FTM(layers=[1], lr=1e-2, threshold=1e-3, steps=60).bind(model, tokenizer).edit(batch)
    ((name, update),) = tuned.weights.items()
    identity = torch.eye(update.dense().shape[1])

    def proposed(share: float) -> Delta:
        part = LowRank(update.dense(torch.float32) * share, identity)
        monkeypatch.setattr(editor, "propose_each", lambda *_: [Delta(("e0",), {name: part})])
        found: Delta = editor.edit(batch)
        times = found.info["rounds"]
        torch.testing.assert_close(
            found.weights[name].dense(), times * part.dense(), rtol=1e-5, atol=1e-6
        )
        return found

    assert proposed(1.0).info["rounds"] == 1
    assert 1 < proposed(0.25).info["rounds"] <= 5
    assert proposed(1e-6).info["rounds"] == 5


@pytest.mark.slow
def test_a_trained_editor_is_stored_and_used(tmp_path: Path) -> None:
    editor = fit(tmp_path, 1)
    model, tokenizer = editor.language_model, editor.tokenizer
    editor.save_weights(tmp_path / "ke.safetensors")
    batch = encode_batch(editor.prompts, facts(1))
    wanted = editor.edit(batch)
    # The network is rebuilt without a language model, then bound.
    alone: Any = KE.load_from_checkpoint(tmp_path / "last.ckpt").bind(model, tokenizer)
    stored: Any = KE(checkpoint=str(tmp_path / "ke.safetensors")).bind(model, tokenizer)
    for loaded in (alone, stored):
        assert loaded.is_trained
        assert loaded.hidden == 8
        for name, update in wanted.weights.items():
            assert torch.equal(loaded.edit(batch).weights[name].dense(), update.dense())


def test_a_stored_editor_brings_its_constraints(tmp_path: Path) -> None:
    editor = small(divergences="both")
    editor.constraints.anneal(0.5)
    editor.trained_batches += 1
    editor.save_weights(tmp_path / "ke.safetensors")
    stored: Any = KE(checkpoint=str(tmp_path / "ke.safetensors"))
    stored.bind(editor.language_model, editor.tokenizer)
    assert stored.divergences == "both"
    assert float(stored.constraints["lp"].margin) == pytest.approx(5e-4)


def test_an_empty_old_answer_is_none() -> None:
    editor = small()
    empty, asked = (EditRequest("x", "The river", "Arles", old_target=old) for old in ("", None))
    texts = [editor.condition_texts(encode_batch(editor.prompts, [one])) for one in (empty, asked)]
    assert texts[0] == texts[1]
    assert not texts[0][0].startswith(" >>")


def train_together(folder: str, loss: Any) -> None:
    """Train on two processes; a step of the second one has a loss that is not finite."""
    root = Path(folder)
    run = trainer(root, max_epochs=2, devices=2, strategy="ddp", limit_val_batches=0)
    editor = small(loss=loss)
    whole, calls = editor.terms, list[int]()

    def broken(*arguments: Any) -> Any:
        terms = whole(*arguments)
        calls.append(0)
        here = loss == "constrained" and run.global_rank == 1 and len(calls) == 2
        return {**terms, "loss": terms["loss"] * float("nan")} if here else terms

    editor.terms = broken
    run.fit(editor, datamodule=Facts(batch_size=1))
    torch.save([len(calls), editor.state_dict()], root / f"rank-{run.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "skipped"), [("constrained", 1), ("plain", 0)])
def test_two_processes_skip_a_step_together(
    tmp_path: Path, forks: Forks, loss: str, skipped: int
) -> None:
    """A loss that is not finite in one of them would leave the other waiting for its gradient."""
    forks.run(train_together, tmp_path, loss, ranks=2)
    (calls, one), (_, two) = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    assert int(one["trained_batches"]) == calls - skipped == 6 - skipped
    for name, value in one.items():
        assert bool(torch.isfinite(value.float()).all()), name
        assert torch.equal(value, two[name]), name


def test_rounds_must_be_one_or_more() -> None:
    with pytest.raises(ValueError, match="rounds must be 1 or more"):
        KE(rounds=0)
