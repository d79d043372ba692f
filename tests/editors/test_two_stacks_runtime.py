"""Editors that act at run time on models of two stacks: effects, runs, and a few contracts.

The whole list of contracts is in ``test_runtime_contract``, slow for two stacks.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.analysis.detection import contrasted, detect
from lightning_edit.cli.doctor_findings import methods_table
from lightning_edit.editors import GRACE, WISE, CaliNet, TPatcher
from lightning_edit.editors.base import Editor
from lightning_edit.editors.neurons.answer_pass import read_answers
from lightning_edit.editors.neurons.ffn_memory import FFNMemory
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.exceptions import ArchitectureError, ConfigError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Responder, Statement
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.view import resolve
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditRequest
from tests.cli.test_doctor import text_of
from tests.editors import test_runtime_contract as contract
from tests.models.knowing import EDITS, FACTS, knowing
from tests.models.tiny import build_tiny, build_tokenizer
from tests.toy import ToyData

OTHERS = [one for one in FACTS if one.prompt not in {edit.prompt for edit in EDITS}]
MEMORY = [f"{one.prompt} {one.target}" for one in FACTS]
slow = pytest.mark.slow


@cache
def known(kind: str) -> tuple[Any, Any]:
    """A model that knows :data:`FACTS`; every test takes its edits back."""
    return knowing(kind)


def said(responder: Responder, requests: Sequence[EditRequest]) -> list[str]:
    return responder.generate_until([Question(one.prompt, 16) for one in requests], ())


def handle(editor: Editor, kind: str) -> EditedModel:
    edited = EditedModel(editor.bind(*known(kind)))
    editor.last_ledger = edited.ledger
    return edited


# ----------------------------------------------------------------------------------------- effects


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kept"),
    [("t5 gated", 6), pytest.param("t5", 0, marks=slow), pytest.param("bart", 6, marks=slow)],
)
def test_t_patcher_writes_answers_of_any_script_and_keeps_the_others(kind: str, kept: int) -> None:
    # T5 1.0 has a ReLU and no gate: its neurons disturb the most.
    steps = 125 if kind == "t5 gated" else 200
    scale = 10.0 if kind == "t5" else 1.0
    edited = handle(TPatcher(memory=MEMORY, steps=steps, max_neurons=12, scale=scale), kind)
    requests = EDITS[2:] if kind == "t5 gated" else EDITS
    for request in requests:
        edited.edit(request)
    assert_written(edited, requests, kept)


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("t5 gated", 0), pytest.param("bart", 0, marks=slow), pytest.param("t5", 4, marks=slow)],
)
def test_calinet_calibrates_facts_together(kind: str, kept: int) -> None:
    # There is no term for locality; see the class. At a rate of 1e-2 BART's loss goes up and down,
    # so that rounding decided what the last step left; at 3e-3 it has settled.
    edited = handle(CaliNet(width=32, steps=300, lr=3e-3, threshold=1e-2), kind)
    edited.edit(EDITS)
    assert_written(edited, EDITS, kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "requests"),
    [
        ({"replacement": "replace_all", "steps": 150}, EDITS[:1]),
        pytest.param({"replacement": "replace_all", "steps": 250}, EDITS[::2], marks=slow),
        pytest.param({"stack": "decoder"}, EDITS[:1], marks=slow),
    ],
    ids=["one edit", "two scripts", "decoder"],
)
def test_grace_writes_what_a_value_can_carry_and_touches_nothing_else(
    options: dict[str, Any], requests: list[EditRequest]
) -> None:
    edited = handle(GRACE(**options), "t5 gated")
    before = ModelResponder(*known("t5 gated"))
    others = [Statement(one.prompt, one.target) for one in OTHERS]
    bits = before.loglikelihood(others)
    for request in requests:
        edited.edit(request)
    # Every other prompt, of the same words and lands, is outside all balls: the same bits.
    assert edited.responder().loglikelihood(others) == bits
    assert_written(edited, requests, len(OTHERS))


def assert_written(edited: EditedModel, requests: Sequence[EditRequest], kept: int) -> None:
    """Check texts that are generated and forced, what others say, and the undo."""
    kind_model, tokenizer = edited.model, edited.tokenizer
    responder = edited.responder()
    texts = said(responder, requests)
    assert texts == [one.target for one in requests]
    assert [edited.generate(one.prompt, 16) for one in requests] == texts
    forced = responder.loglikelihood([Statement(one.prompt, one.target) for one in requests])
    assert all(score.is_greedy for score in forced)
    assert sum(a == b.target for a, b in zip(said(responder, OTHERS), OTHERS, strict=True)) >= kept
    edited.undo()
    assert said(ModelResponder(kind_model, tokenizer), FACTS) == [one.target for one in FACTS]


# ---------------------------------------------------------------------------------- of each editor


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_graces_loss_is_that_of_the_edited_model(stack: Any) -> None:
    for kind, replacement in (("t5", "replace_last"), ("bart", "replace_all")):
        model, tokenizer = build_tiny(kind), build_tokenizer(eos=True)
        editor = GRACE(steps=12, stack=stack, replacement=replacement)  # type: ignore[arg-type]
        edited = editor.edit_model(model, tokenizer, contract.REQUESTS[:1])
        # The value that was trained last is a step further than the last loss.
        twin = GRACE(steps=13, stack=stack, replacement=replacement)  # type: ignore[arg-type]
        (info,) = [
            delta.info
            for delta in twin.edit_model(
                build_tiny(kind), tokenizer, contract.REQUESTS[:1]
            ).ledger.deltas
        ]
        prompts = PromptEncoder.for_model(model, tokenizer)
        ((prompt, answer),) = prompts.pairs([("The capital of France is", "Lyon")])
        labels = prompts.labels(model, answer)
        assert labels == (*answer, tokenizer.eos_token_id)
        ids = torch.tensor([prompt])
        with torch.no_grad():
            theirs = model(input_ids=ids, labels=torch.tensor([labels])).loss
        assert theirs.item() == pytest.approx(info["loss"], rel=1e-4)
        edited.undo()


def test_graces_key_is_read_at_the_prompts_eos_or_at_the_start_token() -> None:
    model, tokenizer = build_tiny("t5"), build_tokenizer(eos=True)
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    for stack, place in (("encoder", -1), ("decoder", 0)):
        editor = GRACE(steps=1, stack=stack).bind(model, tokenizer)
        with torch.no_grad(), capture(model, {editor.module: "input"}) as seen:
            model(input_ids=ids, decoder_input_ids=torch.tensor([[2]]))
        edited = EditedModel(editor)
        editor.last_ledger = edited.ledger
        edited.edit(contract.REQUESTS[0])
        (delta,) = edited.ledger.deltas
        torch.testing.assert_close(delta.state["key"][0], seen[editor.module][0, place])
        edited.undo()


def test_sites_by_default_and_sites_that_are_not_there() -> None:
    t5, tokenizer = build_tiny("t5", num_layers=8, num_decoder_layers=4), build_tokenizer(eos=True)
    assert GRACE().bind(t5, tokenizer).module == "encoder.block.4.layer.1.DenseReluDense.wo"
    decoder = GRACE(stack="decoder").bind(t5, tokenizer)
    assert decoder.module == "decoder.block.2.layer.2.DenseReluDense.wo"
    shown = {
        line.split()[0]: line for line in text_of(methods_table(resolve(t5), [GRACE, CaliNet,
        TPatcher, WISE])).splitlines() if line.split()
    }  # fmt: skip
    assert "encoder 4" in shown["GRACE"]
    assert "decoder 3" in shown["CaliNet"]
    assert "decoder 3" in shown["TPatcher"]
    assert "does not edit encoder-decoder models" in shown["WISE"]
    with pytest.raises(ArchitectureError, match="the encoder of the model has layers 0 to 7"):
        GRACE(layer=8).bind(t5, tokenizer)
    with pytest.raises(ConfigError, match="reads nothing before its start token"):
        GRACE(stack="decoder", replacement="replace_prompt").bind(t5, tokenizer)
    with pytest.raises(ArchitectureError, match="GPT2LMHeadModel is decoder-only"):
        GRACE(stack="encoder").bind(build_tiny("gpt2"), build_tokenizer(bos=True))


def test_t_patchers_memory_holds_the_decoders_states_of_answers() -> None:
    model, tokenizer = build_tiny("t5"), build_tokenizer(eos=True, vocab_size=400)
    model.resize_token_embeddings(400)
    view, prompts = resolve(model), PromptEncoder.for_model(model, tokenizer)
    texts = ["The capital of France is Paris", "法国的首都是巴黎", "Столица Италии — Рим", "x"]
    memory = FFNMemory.read(view, prompts, texts, 1, 200)
    assert memory.texts == tuple(texts[:3])  # of one letter nothing can be asked
    cut = [("The capital of France is", "Paris"), ("法国的首", "都是巴黎")]
    rows = list(prompts.pairs([*cut, ("Столица Италии —", "Рим")]))
    name = view.blocks[1].mlp_up[0]
    for (prompt, answer), states in zip(rows, memory.states, strict=True):
        read = AnswerRows.of(model, [(prompt, answer)])
        with torch.no_grad(), capture(model, {name: "input"}) as seen:
            model(**read.inputs)
        torch.testing.assert_close(states, seen[name][0, : len(answer)], rtol=1e-4, atol=1e-5)
    alone = [read_answers(view, [row], 1)[0] for row in rows]
    for one, states in zip(alone, memory.states, strict=True):
        torch.testing.assert_close(one, states, rtol=1e-4, atol=1e-5)


def test_facts_that_a_model_does_not_know_are_detected() -> None:
    model, tokenizer = known("t5 gated")
    wrong = [
        EditRequest(f"wrong-{one.id}", one.prompt, other.target, one.subject, triple=one.triple)
        for one, other in zip(FACTS[:3], FACTS[3:6], strict=True)
    ]
    facts, impossible = contrasted([*FACTS, *wrong])
    assert not impossible
    verdicts = detect(ModelResponder(model, tokenizer), facts, whole_answer=True)
    assert [one.is_known for one in verdicts] == [True] * len(FACTS) + [False] * 3


# ------------------------------------------------------------------------------------------- runs

MAKERS: dict[str, Callable[[], Editor]] = {
    "GRACE": lambda: GRACE(steps=4),
    "TPatcher": lambda: TPatcher(memory=MEMORY[:4], steps=5, scale=1.0),
    "CaliNet": lambda: CaliNet(width=4, steps=4),
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[] if one == "GRACE" else slow) for one in MAKERS]
)
def test_a_run_is_killed_resumed_opened_and_shipped(name: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(eos=True, vocab_size=400)

    def model() -> Any:
        found = build_tiny("t5", vocab_size=400)
        found.config.name_or_path = found.name_or_path = "tiny-t5"
        return found

    def run(folder: Path, fail_at: str = "", **options: Any) -> Editor:
        editor = MAKERS[name]().bind(model(), tokenizer)
        own = editor.edit

        def planted(batch: Any) -> Any:
            if fail_at in batch.ids:
                raise RuntimeError("planted")
            return own(batch)

        editor.edit = planted  # type: ignore[method-assign]
        trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
        trainer.edit(editor, ToyData(3), run=str(folder), checkpoint_every=1, **options)
        return editor

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="planted"):
        run(tmp_path / "cut", fail_at="fact-1")
    resumed = run(tmp_path / "cut", ckpt_path="last")
    for one, other in zip(whole.edits_in_force, resumed.edits_in_force, strict=True):
        assert all(torch.equal(value, other.state[key]) for key, value in one.state.items())
    for file in ("cases.jsonl",):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    points = [json.loads((tmp_path / one / "results.json").read_text())["points"][-1]["metrics"]
              for one in ("cut", "whole")]  # fmt: skip
    assert points[0] == points[1]
    opened = EditedModel.open(tmp_path / "cut", language_model=(model(), tokenizer))
    prompts = ["the capital of land1 is", "the capital of land2 is", "land9"]
    said_here = [opened.generate(one, 4) for one in prompts]
    import lightning_edit

    shipped = opened.export(tmp_path / "shipped")
    loaded = lightning_edit.load_edited(shipped, model(), tokenizer)
    assert [loaded.generate(one, 4) for one in prompts] == said_here
    opened.undo()
    bare = ModelResponder(model(), tokenizer)
    statements = [Statement(one, "city") for one in prompts]
    assert opened.responder().loglikelihood(statements) == bare.loglikelihood(statements)


# -------------------------------------------------------------------------------- some contracts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GRACE", pytest.param("IKE", marks=slow)])
def test_an_undo_in_the_middle(name: str) -> None:
    contract.test_an_undo_in_the_middle_and_a_redo(name, "t5")


@pytest.mark.parametrize(
    ("name", "family"),
    [("GRACE", "t5 gated"), ("CaliNet", "bart"), ("TPatcher", "t5"), ("SERAC", "bart")],
)
def test_forced_is_generated(name: str, family: str) -> None:
    contract.test_forced_first_choices_are_the_greedy_continuation(name, family)
