"""Trained editors on models of two stacks (T5 v1.0 and v1.1, BART)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors import FTM, KE, MALMEN, MEND, Editor, InstructEdit, RLEdit
from lightning_edit.editors.hypernetwork.base import HypernetworkEditor
from lightning_edit.editors.hypernetwork.edit_tokens import read_tokens
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.export.write import export
from lightning_edit.functional.hypernet import drift_kl
from lightning_edit.functional.measures import mean
from lightning_edit.inference.answer_rows import AnswerRows, start_tokens
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.metrics import summarise
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditBatch, EditRequest
from tests.editors.hypernetwork.mending import trainer
from tests.editors.two_stacks import MODELS, build, facts, tokenizer
from tests.models.tiny import build_tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # PEFT asks for an attribute under its old name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

kinds = pytest.mark.parametrize("kind", MODELS)
Learnt = Callable[[type[HypernetworkEditor], str, int], HypernetworkEditor]
STEPS = {"step_size": 1e-2, "step_size_lr": 1e-2}
SMALL: dict[type[HypernetworkEditor], dict[str, Any]] = {
    MEND: {"rank": 16, "lr": 3e-3, "c_edit": 1.0, "together": False, **STEPS},
    MALMEN: {"rank": 16, "lr": 3e-3, "projection": "both", "together": False, **STEPS},
    RLEdit: {"rank": 16, "lr": 3e-3, "edits_per_step": 1, **STEPS},
    KE: {
        "hidden": 16, "condition": 32, "lr": 1e-2, "max_scale": 10.0, "margin_kl": 0.1,
        "warmup_steps": 2, "smoothing": 0.0, "own_probes": 1, "other_facts": 1,
    },
    InstructEdit: {"rank": 16, "lr": 3e-3, "c_edit": 1.0, **STEPS},
}  # fmt: skip


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Agree to single precision of the largest entry: small ones are differences of large ones.

    Attention over a single key has no gradient by it: what there is of one is rounding.
    """
    scale = max(float(wanted.abs().max()), 1e-2)
    torch.testing.assert_close(got / scale, wanted / scale, rtol=1e-4, atol=1e-5)


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def bound(editor_class: type[HypernetworkEditor], kind: str, **options: Any) -> Any:
    editor = editor_class(**SMALL[editor_class] | options)
    room = editor_class is InstructEdit and kind == "bart"  # for the instructions
    model = build(kind, **({"max_position_embeddings": 256} if room else {}))
    return editor.bind(model, tokenizer())


def loader(batch_size: int = 5) -> DataLoader[Any]:
    return DataLoader(facts(), batch_size=batch_size, collate_fn=list)  # type: ignore[arg-type]


def rows_of(editor: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    encoded = encode_batch(editor.prompts, facts()).encoded
    return [(one.prompt_ids, one.target_ids) for one in encoded]


# ------------------------------------------------------------------------------------------- sites


@kinds
def test_both_stacks_are_edited_and_one_can_be_chosen(kind: str) -> None:
    stacks = {"encoder": 0, "decoder": 0}
    for choice in ("both", *stacks):
        editor = bound(MEND, kind, stack=choice)
        view = editor.view
        last = {"encoder": view.encoder_blocks[-1], "decoder": view.blocks[-1]}
        wanted = [last[stack] for stack in stacks if choice in ("both", stack)]
        names = [name for block in wanted for name in (*block.mlp_up, block.mlp_down)]
        assert editor.edited_modules() == names
        assert bound(MALMEN, kind, projection="down", stack=choice).edited_modules() == [
            block.mlp_down for block in wanted
        ]
    every = bound(KE, kind).edited_modules()
    both = (*view.encoder_blocks, *view.blocks)
    assert {name.rpartition(".")[0] for name in every} >= {
        b.mlp_down.rpartition(".")[0] for b in both
    }
    attentions = {block.attention_out for block in both}
    assert attentions | {block.cross_attention_out for block in view.blocks} <= set(every)


def test_sites_that_are_not_there_are_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"decoder has layers 0 to 1; .*one stack"):
        bound(MEND, "t5", layers=[2])
    assert len(bound(MEND, "t5", layers=[2], stack="encoder").weights) == 2
    llama = build_tiny("llama", vocab_size=320)
    with pytest.raises(ArchitectureError, match=r"Llama.* is decoder-only and has no encoder"):
        MEND(stack="encoder").bind(llama, tokenizer())
    key = "model.decoder.layers.1.encoder_attn.k_proj"
    with pytest.raises(ArchitectureError, match=f"{key}: .*values of the encoder's.* with KE"):
        bound(MALMEN, "bart", modules=[key])
    out = "model.decoder.layers.1.encoder_attn.out_proj"
    assert bound(MALMEN, "bart", modules=[out]).edited_modules() == [out]


# --------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", ["t5 gated", "bart", slow("t5")])
def test_factors_of_every_layer_are_its_gradient_for_each_row(kind: str) -> None:
    """Cross-attention too: its keys and values are made of the encoder's rows."""
    editor = bound(KE, kind)
    model, rows = editor.language_model.double(), rows_of(editor)
    assert len({len(prompt) for prompt, _ in rows}) == 5
    names = editor.edited_modules()
    _, factors = token_factors(model, rows, names, each=True)
    weights = [model.get_parameter(f"{name}.weight").requires_grad_() for name in names]
    for number, (prompt, answer) in enumerate(rows):
        alone = AnswerRows.of(model, [(prompt, answer)])
        logits = model(**alone.inputs).logits[alone.rows, alone.positions]
        nll = torch.nn.functional.cross_entropy(logits, alone.targets)
        for name, wanted in zip(names, torch.autograd.grad(nll, weights), strict=True):
            keys, gradients = (part[number] for part in factors[name])
            # transformers' T5 norms compute in single precision, whatever the model's dtype.
            # Old versions also take the softmax of their attention in it.
            close(gradients.mT @ keys, wanted)
            if name.startswith(editor.view.encoder_blocks[0].name.rpartition(".")[0]):
                assert not gradients[len(prompt) :].any()  # padding


@kinds
@pytest.mark.parametrize("token", ["ans", "mask"])
def test_each_stack_is_read_at_its_own_tokens(kind: str, token: Any) -> None:
    editor = bound(MALMEN, kind)
    model, rows, view = editor.language_model, rows_of(editor), editor.view
    encoder, decoder = view.encoder_blocks[-1].mlp_down, view.blocks[0].mlp_down
    alone = [read_tokens(view, [row], [encoder, decoder], 1, token) for row in rows]
    fed = [len(answer) + len(start_tokens(model)) - 1 for _, answer in rows]
    answered = fed if token == "mask" else [len(answer) for _, answer in rows]
    for name, counts in ((encoder, [len(prompt) for prompt, _ in rows]), (decoder, answered)):
        assert [int(one.sizes[name]) for one in alone] == counts
    for size in (2, 5):
        together = read_tokens(view, rows, [encoder, decoder], size, token)
        for name in (encoder, decoder):
            groups = together.groups(name, len(rows))
            assert int(together.sizes[name].sum()) == sum(map(len, groups))
            for group, one in zip(groups, alone, strict=True):
                for got, wanted in zip(together.factors[name], one.factors[name], strict=True):
                    close(got[group], wanted)
    shared = read_tokens(view, rows, [encoder], 5, token, loss_over="mini_batch")
    answers = torch.tensor([len(answer) for _, answer in rows])
    share = (answers / answers.sum())[shared.owners[encoder]][:, None]
    wanted = read_tokens(view, rows, [encoder], 5, token).factors[encoder][1] * share
    torch.testing.assert_close(shared.factors[encoder][1], wanted, rtol=1e-4, atol=1e-7)
    weight = model.get_parameter(f"{encoder}.weight").requires_grad_()
    batch = AnswerRows.of(model, rows[2:3])
    nll = torch.nn.functional.cross_entropy(
        model(**batch.inputs).logits[batch.rows, batch.positions], batch.targets
    )
    (wanted,) = torch.autograd.grad(nll, [weight])
    keys, gradients = alone[2].factors[encoder]
    torch.testing.assert_close(gradients.mT @ keys, wanted, rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------------------------------- training


def drift_and_nll(editor: Editor, source: Any) -> tuple[list[float], list[float], list[bool]]:
    """Return KL on the probes and NLL of the targets after each fact's edit, one by one."""
    model = editor.language_model
    drift, loss, right = [], [], []
    for request in facts():
        delta = editor.edit(encode_batch(editor.prompts, [request]))
        own = AnswerRows.of(model, [source.tokenise(request.prompt, request.target)])
        held = [source.tokenise(probe.prompt, probe.answers[0]) for probe in request.probes]
        kept = AnswerRows.of(model, held)
        with torch.no_grad():
            before = answer_logits(model, kept)
            with delta.applied(model):
                logits = answer_logits(model, own)
                drift.append(float(drift_kl(before, answer_logits(model, kept))))
        loss.append(float(torch.nn.functional.cross_entropy(logits, own.targets)))
        right.append(bool(own.verdicts(logits).right.all()))
    return drift, loss, right


def trained(editor: HypernetworkEditor, folder: Path, epochs: int, batch_size: int = 5) -> Any:
    run = trainer(
        folder, max_epochs=epochs, gradient_clip_val=None if isinstance(editor, KE) else 1.0
    )
    (before,) = run.validate(editor, loader(), verbose=False)
    run.fit(editor, loader(batch_size))
    (after,) = run.validate(editor, loader(), verbose=False)
    return before, after


@pytest.mark.parametrize(
    ("editor_class", "kind"), [(MEND, "t5 gated"), slow(MALMEN, "bart"), slow(KE, "t5")]
)
def test_a_short_training_lowers_the_loss_and_leaves_the_model(
    editor_class: type[HypernetworkEditor], kind: str, tmp_path: Path
) -> None:
    editor = bound(editor_class, kind, **({} if editor_class is KE else {"lr": 1e-2}))
    hashed = weights_hash(editor.language_model)
    before, after = trained(editor, tmp_path, 12 if editor_class is KE else 6)
    assert after["val/edit_nll"] < before["val/edit_nll"] - 0.3
    assert weights_hash(editor.language_model) == hashed
    assert all(parameter.grad is None for parameter in editor.language_model.parameters())


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """Train an editor on the five facts, or load what an earlier test has trained."""
    folder = tmp_path_factory.mktemp("learnt")

    def make(editor_class: type[HypernetworkEditor], kind: str, epochs: int) -> HypernetworkEditor:
        path = folder / f"{editor_class.__name__}-{kind}-{epochs}.safetensors"
        if not path.exists():
            editor = bound(editor_class, kind, any_wording=True)
            trained(editor, folder, epochs)
            editor.save_weights(path)
        return bound(editor_class, kind, any_wording=True, checkpoint=str(path))

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("editor_class", "kind", "epochs", "written"),
    [
        (MEND, "t5", 250, 1),
        (MEND, "bart", 150, 1),
        (MALMEN, "bart", 50, 3),
        (KE, "bart", 130, 2),
    ],
)
def test_trained_edits_write_their_targets_and_keep_more_than_fine_tuning(
    editor_class: type[HypernetworkEditor], kind: str, epochs: int, written: int, learnt: Learnt
) -> None:
    """Fine-tuning stands for an edit without training; both write the targets as well.

    How many whole answers a training of MEND writes depends on the last bits, so on the processor
    (one to four after 500 epochs too); its loss does by a quarter.
    """
    editor = learnt(editor_class, kind, epochs)
    pristine = drift_and_nll(bound(editor_class, kind), editor.source)
    drift, loss, right = drift_and_nll(editor, editor.source)
    tuned = FTM(steps=40, lr=1e-2).bind(editor.language_model, tokenizer())
    their_drift, their_loss, _ = drift_and_nll(tuned, editor.source)
    assert sum(right) >= written
    assert all(new < 0.7 * old for new, old in zip(loss, pristine[1], strict=True))
    assert mean(loss) < 1.2 * mean(their_loss)
    assert mean(drift) < 0.6 * mean(their_drift)


@kinds
@pytest.mark.parametrize("editor_class", [MEND, KE, MALMEN, RLEdit])
def test_answers_are_learnt_with_the_end_that_generation_stops_at(
    editor_class: type[HypernetworkEditor], kind: str
) -> None:
    editor = bound(editor_class, kind)
    (end,) = {editor.tokenizer.eos_token_id}
    assert end in editor.prompts.end_tokens(editor.language_model)
    batch = encode_batch(editor.prompts, facts())
    assert editor.edit_rows(batch) == [
        (prompt, (*answer, end)) for prompt, answer in rows_of(editor)
    ]
    # A row where only the next token is read, and one that ends already, stay as they are.
    rows = ((0, ((5, 6), ())), (1, ((5, 6), (7, end))))
    assert editor.learnt(rows) == rows


@pytest.mark.slow
def test_a_trained_edit_generates_its_target_and_stops(learnt: Learnt) -> None:
    editor = learnt(MALMEN, "bart", 50)  # the same on every processor that was tried
    model, exact, begun = editor.language_model, 0, 0
    for request in facts():
        with editor.edit(encode_batch(editor.prompts, [request])).applied(model):
            (text,) = editor.continuations([request.prompt], 48, [])
        exact += text.strip() == request.target
        begun += text.strip().startswith(request.target)
    assert begun >= 2
    assert exact == begun


@pytest.mark.slow
@pytest.mark.parametrize(
    ("editor_class", "kind", "epochs", "options"),
    [
        (MEND, "t5 gated", 100, {"lr": 1e-2}),
        (RLEdit, "bart", 15, {"lr": 1e-2, "edits_per_step": 2, "back_depth": 2}),
        (InstructEdit, "t5", 30, {}),
    ],
)
def test_training_makes_each_edit_alone_better(
    editor_class: type[HypernetworkEditor],
    kind: str,
    epochs: int,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    editor = bound(editor_class, kind, any_wording=True, **options)
    pristine = drift_and_nll(bound(editor_class, kind), editor.source)
    trained(editor, tmp_path, epochs)
    assert mean(drift_and_nll(editor, editor.source)[1]) < 0.8 * mean(pristine[1])


@pytest.mark.parametrize(
    ("editor_class", "kind"), [(MEND, "t5"), slow(MALMEN, "bart"), slow(KE, "t5 gated")]
)
def test_validation_scores_are_those_of_an_evaluation(
    editor_class: type[HypernetworkEditor], kind: str, tmp_path: Path
) -> None:
    large = {"max_scale": 300.0} if editor_class is KE else {"step_size": 3.0}
    editor = bound(editor_class, kind, **large)
    editor.trained_batches += 1
    model, scores = editor.language_model, list[ProbeScore]()
    scorer = Scorer(model, editor.prompts, modes=("tf",))
    pristine = Baseline(evaluate(scorer, facts()))
    for request in facts():
        with editor.edit(encode_batch(editor.prompts, [request])).applied(model):
            scores += evaluate(scorer, [request], pristine)
    expected = summarise(scores)
    for size in (1, 5):
        found = trainer(tmp_path).validate(editor, loader(size), verbose=False)[0]
        for name in ("reliability/em@tf", "generalization/em@tf", "locality/kept@tf"):
            assert found[f"val/{name}"] == pytest.approx(expected[name]), name
    assert expected["locality/kept@tf"] < 1


# ---------------------------------------------------------------------------------- edits and files


class Facts(EditDataModule):
    """The five facts, to train on and to edit."""

    def load_split(self, split: str) -> list[EditRequest]:
        return [] if split == "val" else facts()


@pytest.mark.bits
@pytest.mark.parametrize(
    ("editor_class", "kind"), [(MEND, "bart"), slow(MALMEN, "t5 gated"), slow(KE, "t5")]
)
def test_a_training_resumes_and_its_checkpoint_edits(
    editor_class: type[HypernetworkEditor], kind: str, tmp_path: Path
) -> None:
    def fit(folder: Path, epochs: int, resume: bool = False) -> Any:
        editor = bound(editor_class, kind, decay_steps=9)
        saving = ModelCheckpoint(dirpath=folder, save_last=True)
        run = trainer(folder, max_epochs=epochs, callbacks=[saving], enable_checkpointing=True)
        run.fit(editor, datamodule=Facts(batch_size=2), ckpt_path="last" if resume else None)
        return editor

    whole = fit(tmp_path / "whole", 2)
    fit(tmp_path / "parts", 1)
    resumed = fit(tmp_path / "parts", 2, resume=True)
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    wanted = whole.edit(encode_batch(whole.prompts, facts()[:2]))
    path, model = tmp_path / "whole" / "last.ckpt", build(kind)
    for loaded in (
        Editor.load_from_checkpoint(path, language_model=(model, tokenizer())),
        editor_class(checkpoint=str(path)).bind(model, tokenizer()),
    ):
        assert type(loaded) is editor_class
        found = loaded.edit(encode_batch(loaded.prompts, facts()[:2]))
        assert list(found.weights) == list(wanted.weights)
        for name, update in wanted.weights.items():
            assert torch.equal(found.weights[name].dense(), update.dense()), name


@pytest.mark.parametrize(
    ("editor_class", "kind"),
    [
        *((editor, kind) for editor in (MEND, MALMEN) for kind in MODELS),
        (RLEdit, "t5"),
        (InstructEdit, "bart"),
        (KE, "t5 gated"),
        slow(KE, "t5"),
        slow(KE, "bart"),
    ],
)
def test_an_edit_is_taken_back_bit_for_bit(
    editor_class: type[HypernetworkEditor], kind: str
) -> None:
    large = {"max_scale": 30.0, "layers": [1]} if editor_class is KE else {"step_size": 1.0}
    editor = bound(editor_class, kind, **large)
    model, before = editor.language_model, weights_hash(editor.language_model)
    edited = editor.edit_model(model, tokenizer(), facts()[2:])
    view = resolve(model)
    assert set(edited.ledger.touched) == {f"{name}.weight" for name in editor.edited_modules()}
    stacks = [block.name.rpartition(".")[0] for block in (view.encoder_blocks[0], view.blocks[0])]
    for stack in stacks:
        assert any(name.startswith(f"{stack}.") for name in edited.ledger.touched)
    assert weights_hash(model) != before
    edited.undo()
    assert weights_hash(model) == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("editor_class", "kind"), [(MALMEN, "bart"), slow(MEND, "t5"), slow(KE, "t5 gated")]
)
def test_a_run_is_killed_resumed_opened_and_exported(
    editor_class: type[HypernetworkEditor],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("peft")
    from peft import AutoPeftModelForSeq2SeqLM

    base, checkpoint = tmp_path / "base", tmp_path / "editor.safetensors"
    build(kind).save_pretrained(base)
    tokenizer().save_pretrained(base)
    large = {"max_scale": 3.0} if editor_class is KE else {"step_size": 1.0}
    made = bound(editor_class, kind, **large)
    made.trained_batches += 1
    made.save_weights(checkpoint)
    own = editor_class.edit

    def run(folder: Path, fail_at: str = "", **options: Any) -> Any:
        def edit(editor: Any, batch: EditBatch) -> Delta:
            if fail_at in batch.ids:
                raise RuntimeError("planted")
            return own(editor, batch)

        monkeypatch.setattr(editor_class, "edit", edit)
        editor = editor_class(checkpoint=str(checkpoint)).bind(*load_language_model(str(base)))
        edits = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
        edits.edit(editor, Facts(), run=str(folder), checkpoint_every=1, **options)
        return editor.language_model

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="planted"):
        run(tmp_path / "cut", fail_at="e3")
    assert weights_hash(run(tmp_path / "cut", ckpt_path="last")) == weights_hash(whole)
    for name in ("cases.jsonl", "ledger/journal.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    opened = EditedModel.open(tmp_path / "cut")
    assert weights_hash(opened.model) == weights_hash(whole)
    batch = AnswerRows.of(whole, rows_of(made))
    with torch.no_grad():
        wanted = answer_logits(whole, batch)
        assert (wanted - answer_logits(build(kind), batch)).abs().max() > 0.1
    for form in ("peft", "merged"):
        path = export(tmp_path / "cut", form).path
        if form == "peft":
            loaded: Any = AutoPeftModelForSeq2SeqLM.from_pretrained(str(path)).merge_and_unload()
        else:
            loaded = load_language_model(str(path))[0]
        with torch.no_grad():
            torch.testing.assert_close(
                answer_logits(loaded.eval(), batch), wanted, rtol=1e-3, atol=1e-3
            )
    opened.undo()
    assert weights_hash(opened.model) == weights_hash(build(kind))
