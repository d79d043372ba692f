"""Cost of editors that act at run time: counts are exact, asking leaves no trace."""

import time
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.callbacks import EfficiencyCallback
from lightning_edit.callbacks.base import EvalContext
from lightning_edit.callbacks.query_cost import add_cost
from lightning_edit.editors import RAG
from lightning_edit.editors.base import Editor
from lightning_edit.editors.prompting.context import Context
from lightning_edit.editors.prompting.facts import FactMemory
from lightning_edit.exceptions import ConfigError
from lightning_edit.inference.responder import Question
from lightning_edit.metrics import RuntimeCost
from lightning_edit.session.trainer import EditTrainer
from tests.editors.runtime_toys import Book, Told
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer


def measured(run: Path, editor: Editor, **options: Any) -> list[dict[str, float]]:
    trainer = EditTrainer(
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[EfficiencyCallback(queries=2)],
    )
    editor.bind(toy_model(), toy_tokenizer())
    results = trainer.edit(editor, ToyData(2), run=str(run), modes=("tf",), **options)
    return [point["metrics"] for point in results["points"] if point["after"]]


def test_texts_are_counted_in_bytes_and_in_tokens(tmp_path: Path) -> None:
    # city0, city1 and a blank each: six bytes an edit, a token an edit before each prompt.
    one, two = measured(tmp_path, Told("{target} "), eval_at=[1, "end"])
    for edits, now in enumerate((one, two), start=1):
        assert now["efficiency/text_bytes"] == 6
        assert now["efficiency/state_bytes"] == 0
        assert now["efficiency/added_tokens"] == edits
        assert now["efficiency/seconds_per_query"] > 0
        slowdown = (
            now["efficiency/seconds_per_query"] / now["efficiency/seconds_per_query_unedited"]
        )
        assert now["efficiency/query_slowdown"] == pytest.approx(slowdown)


def test_alone_each_edit_counts_for_itself(tmp_path: Path) -> None:
    (now,) = measured(tmp_path, Told("{target} "), protocol="single")
    assert now["efficiency/text_bytes"] == 6
    assert now["efficiency/added_tokens"] == 1


def test_module_state_is_counted_and_asking_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    (now,) = measured(tmp_path, editor := Book())
    width = editor.language_model.config.n_embd
    inner = 4 * width  # the key is the down-projection's input
    assert now["efficiency/state_bytes"] == 4 * (inner + width)
    assert now["efficiency/added_tokens"] == 0
    plain = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    other = plain.edit(
        Book().bind(toy_model(), toy_tokenizer()),
        ToyData(2), run=str(tmp_path / "plain"), modes=("tf",),
    )  # fmt: skip
    own = other["points"][-1]["metrics"]
    assert {name: now[name] for name in own} == own


def test_a_weight_editor_has_no_cost_of_asking(tmp_path: Path) -> None:
    (now,) = measured(tmp_path, ToyEditor())
    assert "efficiency/delta_bytes" in now
    assert not {"efficiency/state_bytes", "efficiency/seconds_per_query"} & now.keys()


def test_what_was_found_for_a_question_before_is_found_again_while_the_clock_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context, pause = RAG.context, 0.05

    def slow(self: RAG, prompt: str, memory: FactMemory) -> Context | None:
        time.sleep(pause)
        return context(self, prompt, memory)

    monkeypatch.setattr(RAG, "context", slow)
    edited = (editor := RAG()).edit_model(toy_model(), toy_tokenizer(), requests := toy_requests(2))
    responder = edited.responder()
    responder.generate_until([Question(one.prompt, 2) for one in requests])  # an evaluation
    given = EvalContext(
        2, edited.model, edited.tokenizer, requests, ledger=edited.ledger, responder=responder,
        prompts=editor.prompts,
    )  # fmt: skip
    add_cost(metric := RuntimeCost(), given, queries=2)
    cost = metric.compute()
    assert cost["seconds_per_query"] > pause
    assert cost["added_tokens"] > 0


def test_bytes_alone_without_queries() -> None:
    editor = Told("{target} ")
    edited = editor.edit_model(toy_model(), toy_tokenizer(), toy_requests(3))
    context = EvalContext(
        3, edited.model, edited.tokenizer, toy_requests(3), ledger=edited.ledger,
        responder=editor.responder(edited.ledger.in_force), prompts=editor.prompts,
    )  # fmt: skip
    add_cost(metric := RuntimeCost(), context, queries=0)
    assert metric.compute().keys() == {"state_bytes", "text_bytes"}
    edited.undo()
    add_cost(empty := RuntimeCost(), context, queries=2)
    assert not empty.update_count
    with pytest.raises(ConfigError, match="`queries` must be 0 or more, got -1"):
        EfficiencyCallback(queries=-1)
