"""MALMEN and RLEdit in Lightning: learning, resume, accumulation, precision, processes."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_edit.editors import MALMEN, Editor, RLEdit
from lightning_edit.editors.hypernetwork.solving import SolvingHypernetwork
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import SolveError
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weights_hash
from tests.editors.hypernetwork.mending import trainer
from tests.forks import Forks
from tests.toy import ToyData, toy_model, toy_requests, toy_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:You are using .* precision"),
]
KINDS: list[Any] = [MALMEN, pytest.param(RLEdit, marks=pytest.mark.slow)]


def made(kind: type[SolvingHypernetwork], **options: Any) -> Any:
    settings: dict[str, Any] = {"rank": 4, "lr": 1e-2, "step_size": 3e-2, "any_wording": True}
    if kind is RLEdit:
        settings |= {"edits_per_step": 2, "num_blocks": 2, "back_depth": 2}
    editor = kind(**settings | options)
    return editor.bind(toy_model(), toy_tokenizer())


def sharp_model() -> Any:
    """A model whose keys and logits are larger than those of its random start."""
    model = toy_model()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
        for block in model.transformer.h:
            block.mlp.c_fc.weight.mul_(30)
    return model


def data(size: int = 3, count: int = 7) -> ToyData:
    loader = ToyData(count)
    loader.batch_size = size
    return loader


def fit(editor: Any, folder: Path, loader: ToyData | None = None, **options: Any) -> Any:
    run = trainer(folder, **{"max_epochs": 1, "gradient_clip_val": 1.0} | options)
    run.fit(editor, datamodule=loader or data(), ckpt_path=options.pop("ckpt_path", None))
    return editor


def state_of(editor: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in editor.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_and_leaves_the_language_model_alone(
    kind: type[SolvingHypernetwork], tmp_path: Path
) -> None:
    """Four edits that are the same in every epoch are made better and better."""
    options = {"edits_per_step": 4} if kind is RLEdit else {}
    editor = made(kind, c_loc=0.1, step_size=0.1, any_wording=False, other_facts=0, **options).bind(
        sharp_model(), toy_tokenizer()
    )
    before = weights_hash(editor.language_model)
    losses = Losses()
    fit(editor, tmp_path, data(4, 4), max_epochs=12, callbacks=[losses])
    assert losses.found[-1] < losses.found[0] - 0.25
    found = editor.trainer.callback_metrics
    names = {"val/reliability/em@tf", "val/generalization/em@tf", "val/locality/kept@tf"}
    assert names | {"val/loss", "train/edit_nll", "train/locality_kl"} < set(found)
    assert weights_hash(editor.language_model) == before
    assert all(p.grad is None for p in editor.language_model.parameters())
    assert int(editor.trained_batches) == 12
    assert float(editor.networks[0].up.detach().abs().max()) > 0  # left its zero start


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.bits
def test_resumed_training_continues_identically(
    kind: type[SolvingHypernetwork], tmp_path: Path
) -> None:
    """Killed inside the second epoch, a run goes on from the checkpoint of the first."""

    def run(folder: Path, epochs: int, resume: bool) -> Any:
        saving = ModelCheckpoint(dirpath=folder, save_last=True)
        trained = made(kind, decay_steps=9)
        loop = trainer(
            folder,
            max_epochs=epochs,
            callbacks=[saving],
            enable_checkpointing=True,
            gradient_clip_val=1.0,
            limit_val_batches=0,
        )
        loop.fit(trained, datamodule=data(), ckpt_path="last" if resume else None)
        return trained

    whole = state_of(run(tmp_path / "whole", 2, resume=False))
    run(tmp_path / "parts", 1, resume=False)
    resumed = state_of(run(tmp_path / "parts", 2, resume=True))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    loaded = kind.load_from_checkpoint(
        tmp_path / "parts" / "last.ckpt", language_model=(toy_model(), toy_tokenizer())
    )
    again = made(kind, rank=9, checkpoint=str(tmp_path / "parts" / "last.ckpt"), token="mask")
    assert (again.rank, again.token) == (4, "ans")  # the file's
    batch = encode_batch(again.tokenizer, toy_requests(2))
    wanted = loaded.edit(batch)
    for name, update in again.edit(batch).weights.items():
        assert torch.equal(update.dense(), wanted.weights[name].dense())
    assert isinstance(Editor.load_from_checkpoint(tmp_path / "parts" / "last.ckpt"), kind)


class Losses(pl.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.found.append(float(outputs["loss"]))


class Gradients(pl.Callback):
    """Keeps the gradient of every optimiser step."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        parts = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        assert len(parts) == len(list(pl_module.parameters()))
        self.found.append(torch.cat(parts))


def plain_batches(together: bool = True, learn: bool = True) -> Any:
    """An editor whose batches have nothing sampled, and which stays as it is."""
    options: dict[str, Any] = {"any_wording": False, "other_facts": 0, "lr": 0.0}
    editor = made(MALMEN, together=together, **options)
    if not learn:
        editor.update_norms(editor.read(encode_batch(editor.tokenizer, toy_requests(20))))
        editor.update_norms = lambda _: None
    return editor


def test_accumulated_gradients_are_the_mean_of_the_batches(tmp_path: Path) -> None:
    def gradients(**options: Any) -> list[torch.Tensor]:
        keep = Gradients()
        settings = {"limit_val_batches": 0, "callbacks": [keep], "gradient_clip_val": None}
        fit(plain_batches(learn=False), tmp_path, data(2, 4), **settings | options)
        return keep.found

    one, two = gradients()
    (both,) = gradients(accumulate_grad_batches=2)
    assert torch.allclose(both, (one + two) / 2, rtol=1e-5, atol=1e-8)
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_trains(kind: type[SolvingHypernetwork], tmp_path: Path) -> None:
    plain = fit(made(kind), tmp_path, max_epochs=1, limit_val_batches=0)
    mixed = fit(made(kind), tmp_path, precision="bf16-mixed", max_epochs=1, limit_val_batches=0)
    assert int(mixed.trained_batches) == int(plain.trained_batches) == 3
    for name, value in mixed.state_dict().items():
        assert bool(torch.isfinite(value.float()).all())
        if "mean" in name:
            assert value.dtype == torch.float32
            assert torch.allclose(value, plain.state_dict()[name], atol=0.05), name


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_that_is_not_finite_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    editor = made(MALMEN)
    with torch.no_grad():
        editor.networks[0].scale.fill_(float("nan"))
    before = editor.networks[0].down.detach().clone()
    fit(editor, tmp_path, limit_val_batches=0)
    assert "step 0 is skipped: transformer.h.1.mlp.c_proj.weight: the wanted changes" in caplog.text
    assert int(editor.trained_batches) == 0
    assert torch.equal(editor.networks[0].down.detach(), before)
    with pytest.raises(SolveError, match="lower learning rate"):
        editor.edit(encode_batch(editor.tokenizer, toy_requests(1)))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_estimated(kind: type[SolvingHypernetwork]) -> None:
    view = resolve(toy_model())
    one, two = kind.memory_bytes(view, [1]), kind.memory_bytes(view, [0, 1])
    assert 0 < one <= two


def train_together(folder: str, together: bool) -> None:
    root, keep = Path(folder), Gradients()
    run = trainer(
        root, max_epochs=2, devices=2, strategy="ddp", limit_val_batches=0, callbacks=[keep]
    )
    editor = plain_batches(together)
    run.fit(editor, datamodule=data(2, 8))
    torch.save([keep.found, editor.state_dict()], root / f"rank-{run.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_two_processes_are_one_with_twice_the_batch(
    tmp_path: Path, forks: Forks, together: bool
) -> None:
    """The solve is over the edits of both processes; so are statistics, loss and gradient."""
    forks.run(train_together, tmp_path, together, ranks=2)
    keep, editor = Gradients(), plain_batches(together)
    settings = {"limit_val_batches": 0, "callbacks": [keep], "gradient_clip_val": None}
    fit(editor, tmp_path, data(4, 8), max_epochs=2, **settings)
    for rank in (0, 1):
        found, state = torch.load(tmp_path / f"rank-{rank}.pt")
        assert len(found) == len(keep.found) == 4
        for got, wanted in zip(found, keep.found, strict=True):
            assert float((got - wanted).norm()) < 1e-4 * float(wanted.norm())
        for name, value in editor.state_dict().items():
            assert torch.allclose(state[name].float(), value.float(), atol=1e-5), name
