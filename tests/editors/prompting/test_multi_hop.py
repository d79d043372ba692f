"""MeLLo on multi-hop cases of MQuAKE, asked of a reader that keeps to the format of the dialogue.

The reader knows the hops of every case, divides its question, and tells whether a fact is about its
sub-question. What is left to fail is the editor: the loop, the retrieval, the place of the answer.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.datamodules.formats import read_requests
from lightning_edit.editors import MeLLo
from lightning_edit.editors.prompting.mello import DialogueResponder
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.inference.responder import Responder, TokenScores
from lightning_edit.metrics.criteria import CriterionScores
from lightning_edit.types import EditRequest
from tests.conftest import shared_path
from tests.models.tiny import build_tiny, build_tokenizer

PASSED = "portability.multi_hop/passed@gen"


@dataclass(frozen=True)
class Hop:
    question: str
    cloze: str
    answer: str


class Reader(Responder):
    """A model that knows the unedited world, and goes on writing behind every answer.

    Args:
        records: Cases in MQuAKE's form.
        credulous: Whether it takes every retrieved fact for an answer.
        deaf: Whether it takes none.
    """

    def __init__(
        self, records: list[dict[str, Any]], credulous: bool = False, deaf: bool = False
    ) -> None:
        self.chains: dict[str, tuple[list[Hop], list[Hop]]] = {}
        self.credulous, self.deaf = credulous, deaf
        #: What it takes for true where an edit says otherwise.
        self.unedited: dict[str, str] = {}
        for record in records:
            for one in record["requested_rewrite"]:
                self.unedited[one["question"]] = one["target_true"]["str"]
            old, new = (
                [Hop(one["question"], one["cloze"], one["answer"]) for one in record[name]]
                for name in ("single_hops", "new_single_hops")
            )
            for question in record["questions"]:
                self.chains[question] = old, new

    def loglikelihood(self, statements: Any) -> list[TokenScores]:
        return [TokenScores((1,), (0,), (1.0,)) for _ in statements]

    def loglikelihood_rolling(self, texts: Any, max_tokens: int | None = None) -> Any:
        raise AssertionError("not asked")

    def generate_until(self, questions: Any, stop: Any = ("\n",)) -> list[str]:
        found = []
        for one in questions:
            text = self.speak(one.prompt)
            for mark in stop:
                text = text.partition(mark)[0]
            found.append(text.strip())
        return found

    def speak(self, prompt: str) -> str:
        """Go on with a dialogue, as far as a model would that nobody stops."""
        question, _, said = prompt.rpartition("Question: ")[2].partition("\n")
        if question not in self.chains:  # a single fact, asked as it is
            return f"{question.split()[-1]}.\nQuestion: and so on"
        answers, here = self.walk(question, said)
        rest = f"{answers[-1]}. I am sure.\n\nQuestion: What else?\n" if answers else ""
        if said.endswith("Final answer:"):
            return f" {rest}"
        before = f"Intermediate answer: {answers[-1]}\n" if answers else ""
        if here is None:
            return f"{before}Final answer: {rest}"
        return (
            f"{before}Subquestion: {here.question}\nGenerated answer: {self.belief(here)}\n"
            "Retrieved fact: what it would make up itself\n"
        )

    def belief(self, hop: Hop) -> str:
        """Return its own answer to a hop, without any edit."""
        return self.unedited.get(hop.question, hop.answer)

    def walk(self, question: str, said: str) -> tuple[list[str], Hop | None]:
        """Return the intermediate answers of a dialogue so far, and the hop that is next."""
        old, new = self.chains[question]
        facts = [part.partition("\n")[0] for part in said.split("Retrieved fact: ")[1:]]
        answers: list[str] = []
        chain = old
        for number, fact in enumerate(facts):
            hop = chain[number]
            about = fact.startswith(hop.cloze) or self.credulous
            told = fact[len(hop.cloze) :].strip(" .") if fact.startswith(hop.cloze) else fact
            answers.append(told if about and not self.deaf else self.belief(hop))
            if number < len(new) and answers[-1] == new[number].answer:
                chain = new
        return answers, chain[len(facts)] if len(facts) < len(chain) else None


def small_records() -> list[dict[str, Any]]:
    """Two cases: the second hop of the first is edited too, and that of the other is not."""

    def hop(question: str, cloze: str, answer: str) -> dict[str, str]:
        return {"question": question, "cloze": cloze, "answer": answer}

    def rewrite(subject: str, prompt: str, new: str, true: str, question: str) -> dict[str, Any]:
        return {
            "subject": subject, "prompt": prompt, "question": question,
            "target_new": {"str": new}, "target_true": {"str": true},
        }  # fmt: skip

    lives = ("Where does Ana Ruiz live?", "Ana Ruiz lives in")
    lies = ("In which country is Lyon?", "Lyon lies in")
    plays = ("What does Bo Lind play?", "Bo Lind plays the")
    made = ("Of what is a flute made?", "A flute is made of")
    return [
        {
            "case_id": 1,
            "requested_rewrite": [
                rewrite("Ana Ruiz", "{} lives in", "Lyon", "Arles", lives[0]),
                rewrite("Lyon", "{} lies in", "Peru", "France", lies[0]),
            ],
            "questions": ["In which country does Ana Ruiz live?", "Ana Ruiz's country is called?"],
            "answer": "Gaul", "new_answer": "Peru",
            "single_hops": [hop(*lives, "Arles"), hop("Where is Arles?", "Arles lies in", "Gaul")],
            "new_single_hops": [hop(*lives, "Lyon"), hop(*lies, "Peru")],
        },
        {
            "case_id": 2,
            "requested_rewrite": [rewrite("Bo Lind", "{} plays the", "flute", "drum", plays[0])],
            "questions": ["Of what is the instrument of Bo Lind made?"],
            "answer": "leather", "new_answer": "silver",
            "single_hops": [
                hop(*plays, "drum"), hop("Of what is a drum made?", "A drum is made of", "leather"),
            ],
            "new_single_hops": [hop(*plays, "flute"), hop(*made, "silver")],
        },
    ]  # fmt: skip


def accuracy(
    records: list[dict[str, Any]], folder: Path, together: bool = True, **kinds: bool
) -> float:
    """Return the multi-hop accuracy over cases, as an evaluation computes it from generated texts.

    Args:
        records: The cases.
        folder: Where they are written, to be read as a file of MQuAKE.
        together: Whether the edits of all cases are in force, or only the case's own.
        **kinds: What the reader is like.
    """
    path = folder / "mquake.json"
    path.write_text(json.dumps(records))
    requests = read_requests(str(path)).requests
    sizes = {"max_position_embeddings": 8000, "num_hidden_layers": 1}
    model = build_tiny("llama", vocab_size=320, **sizes)
    tokenizer = build_tokenizer(bos=True, vocab_size=320)
    metric = CriterionScores()
    for case in [requests] if together else by_case(requests):
        handle = MeLLo().edit_model(model, tokenizer, case)
        responder = DialogueResponder(Reader(records, **kinds), handle.editor)
        asked = [one for one in case if one.probes]
        metric.update(
            evaluate(Scorer(model, tokenizer, modes=("gen",), responder=responder), asked)
        )
        assert handle.editor.context_use.cut == 0
        handle.undo()
    return float(metric.compute()[PASSED])


def by_case(requests: list[EditRequest]) -> Iterator[list[EditRequest]]:
    for name in dict.fromkeys(one.case for one in requests):
        yield [one for one in requests if one.case == name]


def test_hops_through_edited_facts_come_to_the_new_answer(tmp_path: Path) -> None:
    records = small_records()
    assert accuracy(records, tmp_path) == 1.0
    # Who never takes a retrieved fact keeps the old chain; who takes each, forgets what it knew.
    assert accuracy(records, tmp_path, deaf=True) == 0.0
    assert accuracy(records, tmp_path, credulous=True) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_real_cases_are_limited_by_retrieval_alone(tmp_path: Path, together: bool) -> None:
    path = shared_path("data/mquake/MQuAKE-CF_AKEW.json")
    records = json.loads(path.read_text())[:20]
    assert accuracy(records, tmp_path, together) >= 0.85  # 0.95 alone and 0.9 together
    assert accuracy(records[:10], tmp_path, together, deaf=True) <= 0.1
