"""Editors on models of two stacks (T5 v1.0 and v1.1, BART): an encoder reads, a decoder answers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import FT, FTL, FTM, LoRAEdit
from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.responder import Question
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.metrics import summarise
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditBatch, EditRequest, Probe
from tests.models.tiny import build_tiny, build_tokenizer
from tests.toy import ToyData

# PEFT asks for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

MODELS = ["t5", "t5 gated", "bart"]
EDITORS: list[tuple[type[Editor], dict[str, Any]]] = [
    (FT, {"steps": 30, "lr": 2e-2, "objective": "target_new"}),
    (FTM, {"steps": 30, "lr": 2e-2, "layers": [0, 1]}),
    (
        FTL,
        {"steps": 40, "lr": 2e-2, "norm_constraint": 2.0, "layers": [1], "objective": "target_new"},
    ),
    (LoRAEdit, {"steps": 60, "lr": 5e-2}),
]
REQUESTS = [
    EditRequest(
        "a", "The capital of France is", "Lyon", "France",
        probes=(Probe.of("neighborhood", "The capital of Italy is", "Rome"),),
    ),
    EditRequest("b", "Marseille lies in", "Italy", "Marseille"),
    EditRequest("c", "Столица Франции", "Лион", "Франции"),
]  # fmt: skip


def build(kind: str, seed: int = 0) -> Any:
    gate = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return build_tiny(kind.split()[0], seed, **(gate if "gated" in kind else {}))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "bart")) for kind in MODELS]
)
@pytest.mark.parametrize(
    ("editor_class", "arguments"), EDITORS, ids=["FT", "FTM", "FTL", "LoRAEdit"]
)
def test_an_edit_is_written_and_taken_back_bit_for_bit(
    editor_class: type[Editor], arguments: dict[str, Any], kind: str
) -> None:
    model, tokenizer = build(kind), build_tokenizer(eos=True)
    before = weights_hash(model)
    scorer = Scorer(model, tokenizer)
    pristine = summarise(evaluate(scorer, REQUESTS))
    edited = editor_class(**arguments).edit_model(model, tokenizer, REQUESTS)
    assert all(".decoder." in f".{name}" for name in edited.ledger.touched)
    after = summarise(evaluate(scorer, REQUESTS))
    assert after["reliability/nll@tf"] < 0.6 * pristine["reliability/nll@tf"]
    assert after["reliability/token_acc@tf"] > 0.6 > pristine["reliability/token_acc@tf"]
    edited.undo()
    assert weights_hash(model) == before
    assert summarise(evaluate(scorer, REQUESTS)) == pristine


@pytest.mark.parametrize("kind", MODELS)
def test_logits_of_a_batch_are_those_of_one_row_and_of_the_model_itself(kind: str) -> None:
    model = build(kind)
    pairs = [((5, 6, 7, 2), (8, 9)), ((5, 2), (11,)), ((9, 10, 11, 12, 13, 2), (4, 5, 6))]
    batch = AnswerRows.of(model, pairs)
    assert batch.encoder is not None
    assert batch.prompt_ends == [3, 1, 5]
    logits = answer_logits(model, batch)
    row = 0
    for prompt, answer in pairs:
        alone = answer_logits(model, AnswerRows.of(model, [(prompt, answer)]))
        theirs = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer])).logits[
            0
        ]  # the model's own shift of its labels
        part = logits[row : row + len(answer)]
        torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-5)
        if kind != "bart" or model.generation_config.forced_bos_token_id is None:
            torch.testing.assert_close(part, theirs, rtol=1e-4, atol=1e-5)
        row += len(answer)


@pytest.mark.parametrize("kind", MODELS)
def test_factors_of_either_stack_are_the_gradients_of_its_weights(kind: str) -> None:
    model = build(kind)
    view = resolve(model)
    names = [view.encoder_blocks[1].mlp_down, view.blocks[0].mlp_down]
    pairs = [((5, 6, 7, 2), (8, 9)), ((5, 2), (11,))]
    loss, factors = token_factors(model, pairs, names)
    batch = AnswerRows.of(model, pairs)
    nll = torch.nn.functional.cross_entropy(answer_logits(model, batch), batch.targets)
    assert loss == pytest.approx(nll.item(), rel=1e-5)
    weights = [model.get_parameter(f"{name}.weight").requires_grad_(True) for name in names]
    nll = torch.nn.functional.cross_entropy(
        model(**batch.inputs).logits[batch.rows, batch.positions], batch.targets
    )
    for name, gradient in zip(names, torch.autograd.grad(nll, weights), strict=True):
        inputs, outputs = (part.flatten(0, -2) for part in factors[name])
        torch.testing.assert_close(outputs.mT @ inputs, gradient, rtol=1e-4, atol=1e-6)


def test_a_run_is_killed_resumed_and_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FTM.edit

    def run(folder: Path, fail_at: str = "", **options: Any) -> str:
        def edit(editor: FTM, batch: EditBatch) -> Delta:
            if fail_at in batch.ids:
                raise RuntimeError("planted")
            return own(editor, batch)

        monkeypatch.setattr(FTM, "edit", edit)
        model = build("t5")
        model.config.name_or_path = model.name_or_path = "tiny-t5"
        editor = FTM(steps=5, lr=1e-2).bind(model, build_tokenizer(eos=True))
        trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
        trainer.edit(editor, ToyData(4), run=str(folder), checkpoint_every=1, **options)
        return weights_hash(model)

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="planted"):
        run(tmp_path / "cut", fail_at="fact-2")
    assert run(tmp_path / "cut", ckpt_path="last") == whole
    for name in ("cases.jsonl", "ledger/journal.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    opened = EditedModel.open(
        tmp_path / "cut", language_model=(build("t5"), build_tokenizer(eos=True))
    )
    assert weights_hash(opened.model) == whole
    assert isinstance(opened.generate("the capital of land1 is", 4), str)
    opened.undo()
    assert weights_hash(opened.model) == weights_hash(build("t5"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("editor_class", "arguments"), [EDITORS[1], EDITORS[3]], ids=["FTM", "LoRAEdit"]
)
def test_what_is_generated_ends_after_the_answer(
    editor_class: type[Editor], arguments: dict[str, Any], kind: str
) -> None:
    model, tokenizer = build(kind), build_tokenizer(eos=True)
    editor = editor_class(**arguments | {"steps": 240})
    edited = editor.edit_model(model, tokenizer, REQUESTS[0])
    responder = editor.responder(edited.ledger.in_force)
    (said,) = responder.generate_until([Question(REQUESTS[0].prompt, 8)])
    assert said.strip() == REQUESTS[0].target
