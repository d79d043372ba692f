"""InstructEdit: MEND's network behind instructions, in training, validation and single edits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.datamodules import InstructedDataModule
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors import MEND, InstructEdit
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest, Probe
from lightning_edit.types.instructions import INSTRUCTIONS, instructed, is_instructed
from tests.editors.hypernetwork.mending import trainer
from tests.models.tiny import build_tiny, build_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

FACT = EditRequest(
    "it",
    "The capital of Italy is",
    "Paris",
    subject="Italy",
    old_target="Rome",
    rephrases=("What is the capital of Italy?",),
    probes=(Probe.of("neighborhood", "The capital of France is", "Paris"),),
)


class Facts(EditDataModule):
    """The same few facts in every split; two of them are one case."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.count = count

    def load_split(self, split: str) -> list[EditRequest]:
        return [
            EditRequest(
                f"f{number}",
                f"Страна {number}: столица —",
                "Лион",
                old_target="Рим",
                rephrases=(f"Какая столица у страны {number}?",),
                case="pair" if number < 2 else None,
            )
            for number in range(self.count)
        ]


def tiny() -> tuple[Any, Any]:
    model = build_tiny("llama", vocab_size=320, max_position_embeddings=512)
    return model, build_tokenizer(vocab_size=320)


def small(**options: Any) -> Any:
    return InstructEdit(**{"rank": 4, "step_size": 1e-2, "lr": 1e-3} | options).bind(*tiny())


def test_wordings_are_many_and_all_different() -> None:
    for task, wordings in INSTRUCTIONS.items():
        assert len(wordings) == len(set(wordings)) == 10, task


def test_an_instruction_stands_before_prompt_and_rephrases_but_not_before_probes() -> None:
    wording = INSTRUCTIONS["question"][0]
    request = instructed(FACT, wording)
    assert request.prompt == wording.before(FACT.prompt)
    assert request.prompt.endswith("\nInput: The capital of Italy is")
    assert request.rephrases == (wording.before(FACT.rephrases[0]),)
    assert request.prompt[request.subject_start : request.subject_end] == "Italy"
    assert request.probes == FACT.probes
    assert is_instructed(request.prompt)
    assert not is_instructed(FACT.prompt)


def test_a_plain_request_has_the_gradient_of_its_instruction() -> None:
    """Told of a task by argument, or by the request itself: the same update."""
    editor = small(task="question")
    last = INSTRUCTIONS["question"][-1]
    plain = editor.edit(encode_batch(editor.prompts, [FACT]))
    told = editor.edit(encode_batch(editor.prompts, [instructed(FACT, last)]))
    other = InstructEdit(rank=4, step_size=1e-2, task="recent").bind(*tiny())
    recent = other.edit(encode_batch(other.prompts, [FACT]))
    mend: Any = MEND(rank=4, step_size=1e-2).bind(*tiny())
    bare = mend.edit(encode_batch(mend.prompts, [FACT]))
    same = mend.edit(encode_batch(mend.prompts, [instructed(FACT, last)]))
    for name, update in plain.weights.items():
        assert torch.equal(update.dense(), told.weights[name].dense())
        assert torch.equal(update.dense(), same.weights[name].dense())
        for others in (recent, bare):
            assert (update.dense() - others.weights[name].dense()).norm() > 0.1 * update.norm()


def test_the_data_module_alternates_tasks_and_holds_wordings_out() -> None:
    data = InstructedDataModule({"counterfactual": Facts(4), "question": Facts(3)})
    train, test = data.requests("train"), data.requests("test")
    ids = [request.id for request in train]
    assert ids[:4] == ["counterfactual/f0", "counterfactual/f1", "question/f0", "question/f1"]
    assert ids[4:] == ["counterfactual/f2", "question/f2", "counterfactual/f3"]
    assert train[2].case == "question/pair" != train[0].case
    for split, requests in (("train", train), ("test", test)):
        for request in requests:
            task = request.id.partition("/")[0]
            *trained, last = INSTRUCTIONS[task]
            allowed = trained if split == "train" else [last]
            (used,) = [one for one in allowed if request.prompt.startswith(one.before(""))]
            assert all(text.startswith(used.before("")) for text in request.rephrases)
    assert all(r.prompt.endswith("?") for r in test if r.id.startswith("question/"))
    assert not any(r.prompt.endswith("?") for r in test if not r.id.startswith("question/"))
    again = InstructedDataModule({"counterfactual": Facts(4), "question": Facts(3)})
    assert again.requests("train") == train


def test_a_held_out_task_is_only_tested() -> None:
    tasks = {"counterfactual": Facts(), "question": Facts()}
    data = InstructedDataModule(tasks, held_out=["question"])
    assert {r.id.partition("/")[0] for r in data.requests("train")} == {"counterfactual"}
    assert {r.id.partition("/")[0] for r in data.requests("test")} == {"question"}


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(DataError, match="'poetry'"):
        InstructedDataModule({"poetry": Facts()}).requests("train")
    held = InstructedDataModule({"counterfactual": Facts()}, held_out=["question"])
    with pytest.raises(DataError, match=r"\(counterfactual\).*\['question'\].*no data module"):
        held.requests("train")  # else it would be trained on everything and validated on nothing
    with pytest.raises(ConfigError, match=r"no task 'poetry'.*question"):
        InstructEdit(task="poetry").bind(*tiny())


def test_it_trains_on_instructions_and_leaves_the_model_alone(tmp_path: Path) -> None:
    editor = small(together=False)
    before = weights_hash(editor.language_model)
    start = editor.step_sizes.detach().clone()
    data = InstructedDataModule({"question": Facts(3), "recent": Facts(3)}, batch_size=3)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(editor, datamodule=data)
    assert int(editor.trained_batches) == 2
    assert not torch.equal(editor.step_sizes, start)
    assert weights_hash(editor.language_model) == before
    assert {"val/reliability/em@tf", "val/generalization/em@tf"} < set(run.callback_metrics)
