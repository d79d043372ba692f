"""Text editors one by one: what stands before a prompt, to the letter, with and without room."""

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.editors import ICE, IKE, RAG, MeLLo, MemPrompt
from lightning_edit.editors.memory.neutral_texts import SAME_WORDS
from lightning_edit.editors.prompting import mello
from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.editors.prompting.context import Context, Room
from lightning_edit.editors.prompting.demonstrations import type_counts
from lightning_edit.editors.prompting.dialogue import DEMONSTRATIONS, parse
from lightning_edit.editors.prompting.memprompt import levenshtein, normalised
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.inference.responder import Question, Responder, Statement, TokenScores
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.types import EditRequest, Probe
from tests.editors.prompting.test_prompting import corpus
from tests.models.tiny import build_tiny, build_tokenizer

FRANCE = EditRequest("fr", "The capital of France is", "Lyon", "France")
ITALY = EditRequest("it", "The capital of Italy is", "Arles", "Italy")
TONGUE = EditRequest("dd", "The mother tongue of Danielle Darrieux is", "Dutch")


def bound(editor: PromptingEditor, positions: int = 1200) -> tuple[Any, Any]:
    model = build_tiny(
        "llama", vocab_size=320, max_position_embeddings=positions, num_hidden_layers=1
    )
    return model, build_tokenizer(bos=True, vocab_size=320)


def edited(editor: PromptingEditor, *requests: EditRequest, positions: int = 1200) -> Any:
    return editor.edit_model(*bound(editor, positions), list(requests))


def told(editor: PromptingEditor, *requests: EditRequest, prompt: str, room: int = 1200) -> str:
    return str(edited(editor, *requests, positions=room).editor.told_prompt(prompt))


def test_rag_puts_the_nearest_facts_before_a_prompt_the_nearest_last() -> None:
    found = told(RAG(k=2, threshold=None), FRANCE, ITALY, TONGUE, prompt="In Italy the capital is")
    assert found == (
        "New Fact: The capital of France is Lyon\nNew Fact: The capital of Italy is Arles\n"
        "Prompt: In Italy the capital is"
    )


def test_rag_with_a_threshold_leaves_prompts_alone_that_no_edit_is_about() -> None:
    near = "Her native language? Danielle Darrieux spoke"
    for prompt, says in [(near, "Dutch"), ("The river Rhône flows through", None)]:
        found = told(RAG(threshold=0.3), FRANCE, TONGUE, prompt=prompt)
        assert found == prompt if says is None else says in found
        assert "Lyon" not in found


def test_the_threshold_of_rag_lies_half_way_between_another_subject_and_the_prompt_itself() -> None:
    for encoder in ("lexical", "hidden"):
        editor = edited(RAG(encoder=encoder), FRANCE, ITALY, TONGUE, positions=1200).editor
        least = editor.chosen["threshold"]
        index = editor._make_index(SAME_WORDS[0])
        scores = [hit.score for hit in index.nearest(SAME_WORDS[0][0], 10)]
        assert scores[0] > least > (scores[4] + scores[5]) / 2
        assert FRANCE.target in editor.told_prompt(FRANCE.prompt)  # itself
    plain = "The river Rhône flows through"
    assert told(RAG(), FRANCE, ITALY, TONGUE, prompt=plain) == plain
    given = edited(RAG(threshold=None), FRANCE, positions=1200).editor
    assert given.chosen == {}
    assert FRANCE.target in given.told_prompt(plain)


def test_ice_puts_all_facts_in_force_or_the_newest_before_a_prompt() -> None:
    assert told(ICE(), FRANCE, ITALY, prompt="Hello") == (
        "Imagine that The capital of France is Lyon\nImagine that The capital of Italy is Arles\n"
        "Hello"
    )
    assert told(ICE("new_fact", newest=1), FRANCE, ITALY, prompt="Hello ") == (
        "New Fact: The capital of Italy is Arles\nPrompt: Hello "
    )


def demonstrations(text: str) -> list[list[str]]:
    return [one.split("\n") for one in text.split("\n\n")]


def test_ike_has_the_papers_types_order_and_copy_of_the_new_fact() -> None:
    near = [
        EditRequest(
            f"near-{number}", f"The capital of Land{number} is", "Oslo", f"Land{number}",
            rephrases=(f"Land{number} has the capital",),
            probes=(Probe.of("neighborhood", f"The capital of Isle{number} is", "Rome"),),
        )
        for number in range(3)
    ]  # fmt: skip
    editor = IKE([*corpus(13), *near], k=8)
    found = demonstrations(told(editor, FRANCE, TONGUE, prompt="France's capital is"))
    assert len(found) == 10
    assert found[-2:] == [
        ["New Fact: The capital of France is Lyon", "Prompt: The capital of France is Lyon"],
        ["New Fact: The capital of France is Lyon", "Prompt: France's capital is"],
    ]
    facts = [one[0] for one in found[:8]]
    assert all("Land" in fact for fact in facts[5:])  # the most similar ones are nearest
    assert all("City" in fact for fact in facts[:5])
    assert len(set(facts)) == 8
    kinds = []
    for fact, statement in found[:8]:
        said = statement.removeprefix("Prompt: ")
        copied = said == fact.removeprefix("New Fact: ")
        retained = said.endswith((" France", " Rome"))
        kinds.append("copy" if copied else "retain" if retained else "update")
    assert sorted(kinds) == ["copy"] + ["retain"] * 4 + ["update"] * 3


def test_ike_is_seeded_by_fact_and_knows_easyedits_order() -> None:
    def context(seed: int, *requests: EditRequest, prompt: str = "France") -> str:
        return told(IKE(corpus(), k=8, seed=seed), *requests, prompt=prompt)

    assert context(0, FRANCE) == context(0, TONGUE, FRANCE)
    assert context(0, FRANCE) != context(1, FRANCE)
    alike = "Town 3 lies in France\n\n"
    same = [EditRequest("x", "City 3 lies in", "Italy", "City 3")]
    easy = told(IKE(corpus(), k=3, order="easyedit"), *same, prompt="Town 3 lies in")
    found = demonstrations(easy)
    assert found[0][0] == "New Fact: City 3 lies in Italy"
    assert alike in easy
    assert len(found) == 4
    assert found[-1] == ["New Fact: City 3 lies in Italy", "Prompt: Town 3 lies in"]
    # In the paper's form the edited prompt is no demonstration of itself.
    own = told(IKE(corpus(), k=32), *same, prompt="Town 3 lies in")
    assert own.count("New Fact: City 3 lies") == 2
    assert type_counts(32) == (4, 12, 16)


def test_ike_says_what_its_corpus_lacks(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"--model.demonstrations FILE.*ICE"):
        edited(IKE(), FRANCE)
    with pytest.raises(DataError, match="none of its 2 records has both"):
        edited(IKE([FRANCE, ITALY]), TONGUE)
    with pytest.raises(DataError, match="no file of demonstrations at /nowhere"):
        edited(IKE("/nowhere"), TONGUE)
    with caplog.at_level(logging.WARNING):
        edited(IKE([FRANCE, *corpus(3)]), TONGUE)
    assert "1 of 4 records have no rephrasing or no locality probe" in caplog.text


def test_memprompt_hits_below_its_distance_and_asks_other_prompts_plain() -> None:
    question = "What is the capital of France?"
    found = told(MemPrompt(), TONGUE, FRANCE, prompt=question)
    ends = "Question: What is the capital of France? | clarification: The capital of France is Lyon"
    assert found.endswith(f"\n\n{ends}\nAnswer:")
    assert found.count("clarification") == 3
    assert told(MemPrompt(examples=False), FRANCE, prompt=question) == f"{ends}\nAnswer:"
    far = "Who is the king of Norway?"
    assert told(MemPrompt(), TONGUE, FRANCE, prompt=far) == far
    # The known weakness of a distance: names of up to five other letters.
    assert "Lyon" in told(MemPrompt(), FRANCE, prompt="The capital of Greece is")
    assert "Arles" in told(MemPrompt(), FRANCE, ITALY, prompt="The capital of Italy is")


def test_keys_of_questions_and_their_distance() -> None:
    assert normalised("What IS the capital, of France?") == "capital france"
    assert normalised("Who is it?") == "who is it"
    assert normalised("法国的首都是？") == "法国的首都是"
    words = ["", "a", "abc", "acb", "capital", "capitol", "kitten", "sitting", "首都", "首府"]
    for one, other in itertools.product(words, words):
        exact = reference(one, other)
        assert [levenshtein(one, other, limit) for limit in (1, 3, 9)] == [
            min(exact, limit) for limit in (1, 3, 9)
        ]


def reference(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    return min(
        reference(one[1:], other) + 1,
        reference(one, other[1:]) + 1,
        reference(one[1:], other[1:]) + (one[0] != other[0]),
    ) if len(one) + len(other) < 9 else _table(one, other)  # fmt: skip


def _table(one: str, other: str) -> int:
    cells = {(i, 0): i for i in range(len(one) + 1)} | {(0, j): j for j in range(len(other) + 1)}
    for i, j in itertools.product(range(1, len(one) + 1), range(1, len(other) + 1)):
        swap = cells[i - 1, j - 1] + (one[i - 1] != other[j - 1])
        cells[i, j] = min(cells[i - 1, j] + 1, cells[i, j - 1] + 1, swap)
    return cells[len(one), len(other)]


# ------------------------------------------------------------------------------------------- room


def test_texts_that_do_not_fit_are_cut_from_the_far_end_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        handle = edited(IKE(corpus(), k=8), FRANCE, positions=256)
        found = handle.editor.told_prompt("France's capital is")
        handle.editor.told_prompt("The capital is called")
    (delta,) = handle.ledger.in_force
    kept, cut = delta.info["texts"][0], delta.info["texts_cut"][0]
    assert 0 < kept < 9
    assert kept + cut == 9
    whole = told(IKE(corpus(), k=8), FRANCE, prompt="France's capital is", room=2000)
    assert whole.endswith(found)
    assert found.count("New Fact") >= kept
    tokens = len(handle.tokenizer(found)["input_ids"])
    assert tokens <= handle.editor.room.most == 256 - 24
    # One more demonstration would not have fitted.
    longer = whole[whole[: -len(found)].rindex("New Fact: ") :]
    assert len(handle.tokenizer(longer)["input_ids"]) > 256 - 24
    use = handle.editor.context_use
    assert (use.told, use.cut, use.unfit) == (2, 2, 0)
    assert use.texts + use.texts_cut == 18
    (warning,) = [one for one in caplog.messages if "takes 256 tokens" in one]
    assert "of 9 texts stand before" in warning


def test_easyedits_order_keeps_the_most_similar_ones() -> None:
    whole = told(IKE(corpus(), k=6, order="easyedit"), FRANCE, prompt="x", room=2000)
    found = told(IKE(corpus(), k=6, order="easyedit"), FRANCE, prompt="x", room=256)
    kept = demonstrations(found)
    assert 1 < len(kept) < 7
    assert demonstrations(whole)[: len(kept) - 1] == kept[:-1]


def test_a_prompt_without_room_for_the_fact_is_asked_plain_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handle = edited(RAG(), FRANCE, positions=128)
    long = "The river Rhône flows through Lyon, Avignon and Arles. " * 3 + "The capital is"
    assert len(handle.tokenizer(long)["input_ids"]) < 128
    with caplog.at_level(logging.WARNING):
        assert handle.editor.told_prompt(long) == long
    assert "the new fact does not fit before the prompt" in caplog.text
    assert handle.editor.context_use.unfit == 1
    with pytest.raises(DataError, match="request it: its new fact does not fit before its own"):
        edited(RAG(), EditRequest("it", long, "Arles"), positions=128)


def test_a_long_answer_takes_room_of_the_texts_not_of_the_prompt() -> None:
    handle = edited(IKE(corpus(), k=8), FRANCE, positions=256)
    own = handle.editor.responder(handle.ledger.in_force)
    answer = "Lyon, where the river Rhône flows through France and Italy and Lyon and Arles too"
    (score,) = own.loglikelihood([Statement(FRANCE.prompt, answer)])
    assert len(score.tokens) > 24
    short = handle.editor.told_prompt(FRANCE.prompt, answer)
    assert handle.editor.told_prompt(FRANCE.prompt).endswith(short)
    assert short.startswith("New Fact")


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("least_last", [False, True])
def test_room_is_used_to_the_last_text_that_fits(count: int, least_last: bool) -> None:
    prompts = PromptEncoder.for_model(*bound(RAG(), 100))
    room = Room(prompts, 24)
    texts = [f"Lyon lies in Land{number} {'too ' * number}\n" for number in range(count)]
    context = Context("The capital of France is", texts, least_last)
    found = room.fit(context)
    assert found is not None
    assert room.most == 76
    sizes = [room.tokens(context.text(kept)) for kept in range(count + 1)]
    assert found.texts == max(kept for kept, size in enumerate(sizes) if size <= 76)
    assert found.tokens == sizes[found.texts]
    assert (found.texts + found.cut, found.prompt) == (count, context.text(found.texts))
    assert room.fit(context, sizes[0] - 1) is None


@pytest.mark.parametrize(
    ("editor", "message"),
    [
        (RAG(k=0), "`k` of RAG must be 1 or more; got 0"),
        (RAG(threshold=2.0), "`threshold` of RAG must be from 0 to 1, auto, or null; got 2.0"),
        (ICE(newest=0), "`newest` of ICE"),
        (IKE(k=0), "`k` of IKE"),
        (MemPrompt(distance=0), "`distance` of MemPrompt"),
        (MemPrompt(similarity=1.0), "`similarity` of MemPrompt"),
        (MeLLo(steps=0), "`steps` of MeLLo"),
        (RAG(answer_room=0), "`answer_room` of RAG"),
        (RAG(encoder=""), "`encoder` of RAG must be lexical, hidden or a model"),
    ],
)
def test_arguments_out_of_range_are_named(editor: PromptingEditor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        editor.bind(*bound(editor))


def test_a_form_that_does_not_exist_is_named() -> None:
    editor = ICE()
    editor.form = "told"  # type: ignore[assignment]  # on purpose
    with pytest.raises(ConfigError, match="`form` of ICE must be imagine or new_fact; got 'told'"):
        editor.bind(*bound(editor))


# ------------------------------------------------------------------------------------------ MeLLo


class Scripted(Responder):
    """A model that keeps to the format: it divides a question and believes what it is told."""

    def __init__(self, turns: dict[str, list[str]]) -> None:
        self.turns = turns
        self.read: list[str] = []
        self.stops: list[tuple[str, ...]] = []

    def loglikelihood(self, statements: Any) -> list[TokenScores]:
        self.read += [one.prompt for one in statements]
        return [TokenScores((1,), (1,), (0.0,)) for _ in statements]

    def loglikelihood_rolling(self, texts: Any, max_tokens: int | None = None) -> Any:
        raise AssertionError("not asked")

    def generate_until(self, questions: Any, stop: Any = ("\n",)) -> list[str]:
        self.stops.append(tuple(stop))
        found = []
        for one in questions:
            self.read.append(one.prompt)
            asked = one.prompt.rpartition("\nQuestion: ")[2].partition("\n")[0]
            if one.prompt.endswith("Final answer:"):
                found.append(one.prompt.rpartition("Retrieved fact: ")[2].split()[-5].strip("."))
            else:
                found.append(self.turns[asked][one.prompt.rpartition(asked)[2].count("Retrieved")])
        return found


def hop(question: str) -> str:
    return f"Subquestion: {question}\nGenerated answer: It is Paris."


def asked(turns: dict[str, list[str]], steps: int = 4, positions: int = 4000) -> tuple[Any, Any]:
    handle = edited(MeLLo(steps=steps), TONGUE, FRANCE, positions=positions)
    scripted = Scripted(turns)
    return mello.DialogueResponder(scripted, handle.editor), handle.editor


def test_mello_retrieves_for_each_subquestion_and_answers_behind_the_dialogue() -> None:
    question = "Where do people of the home of Danielle Darrieux vote?"
    end = "Intermediate answer: Lyon\nFinal answer: Lyon and more"
    turns = {
        question: [
            hop("What is the mother tongue of Danielle Darrieux?"),
            "Intermediate answer: Dutch\n" + hop("What is the capital of France?"),
            end,
        ]
    }
    responder, editor = asked(turns)
    (text,) = responder.generate_until([Question(question, 8)])
    transcript = responder.inner.read[-1]
    assert transcript == "".join(DEMONSTRATIONS) + (
        f"Question: {question}\n"
        "Subquestion: What is the mother tongue of Danielle Darrieux?\n"
        "Generated answer: It is Paris.\n"
        "Retrieved fact: The mother tongue of Danielle Darrieux is Dutch.\n"
        "Intermediate answer: Dutch\nSubquestion: What is the capital of France?\n"
        "Generated answer: It is Paris.\nRetrieved fact: The capital of France is Lyon.\n"
        "Intermediate answer: Lyon\nFinal answer:"
    )
    assert text == transcript.split()[-5].strip(".")
    assert responder.inner.stops[:3] == [("Retrieved fact:", "Question:")] * 3
    before = len(responder.inner.read)
    responder.loglikelihood([Statement(question, "Lyon", "")])
    assert responder.inner.read[before:] == [transcript]  # the dialogue is held once
    assert (editor.context_use.told, editor.context_use.failed) == (1, 0)


def test_added_tokens_are_those_of_the_texts_and_of_all_turns() -> None:
    question, plain = Question("The capital of France is", 4), Question("The river Rhône", 4)
    handle = edited(RAG(threshold=0.5), FRANCE)
    tokens = handle.editor.room.tokens
    responder = handle.responder()
    extra = tokens(f"New Fact: The capital of France is Lyon\nPrompt: {question.prompt}")
    assert responder.added_tokens([question, plain]) == [extra - tokens(question.prompt), 0]
    asking, editor = asked({"x": [hop("Who?"), "Final answer: z"], "y": ["No."]})
    asking.generate_until([Question("x", 8), Question("y", 8)])
    read = [one for one in asking.inner.read if "Question: x\n" in one]
    assert len(read) == 3  # two turns and the answer
    count = editor.room.tokens
    (other,) = [one for one in asking.inner.read if "Question: y\n" in one]
    assert asking.added_tokens([Question("x", 8), Question("y", 8)]) == [
        sum(map(count, read)) - count("x"), count(other) - count("y"),
    ]  # fmt: skip


def test_what_is_generated_behind_a_dialogue_is_its_forced_first_choice() -> None:
    handle = edited(MeLLo(), FRANCE, positions=3000)
    inner = handle.editor.responder(handle.ledger.in_force).inner
    transcript = "Question: x\nIntermediate answer: Lyon\nFinal answer:"
    handle.editor._dialogues = {"x": mello.Dialogue(transcript, True)}
    responder = mello.DialogueResponder(inner, handle.editor)
    (text,) = responder.generate_until([Question("x", 1)], ())
    (score,) = responder.loglikelihood([Statement("x", "Lyon")])
    assert handle.editor.prompts.decode(score.best[:1]).strip() == text
    assert score == inner.loglikelihood([Statement(transcript, "Lyon")])[0]


@pytest.mark.parametrize(
    "turns",
    [
        ["I do not know."],
        ["Subquestion: Who?"],
        [hop("Who?")] * 9,
        ["Subquestion:\nGenerated answer: x"],
    ],
)
def test_a_dialogue_that_leaves_the_format_has_no_answer(
    turns: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    responder, editor = asked({"x": turns, "y": ["Final answer: z"]}, steps=2)
    with caplog.at_level(logging.WARNING):
        assert responder.generate_until([Question("x", 8)]) == [""]
    assert "left the format of the dialogue about 'x'" in caplog.text
    responder.loglikelihood([Statement("x", "Lyon")])
    assert responder.inner.read[-1].endswith("\nFinal answer:")
    assert editor.context_use.failed == 1
    assert responder.inner.read[-1].count("Retrieved fact: The") <= 2 + sum(
        one.count("Retrieved fact: The") for one in DEMONSTRATIONS
    )


def test_mello_drops_demonstrations_where_there_is_no_room() -> None:
    responder, editor = asked({"x": ["Final answer: z"]}, positions=1400)
    responder.loglikelihood([Statement("x", "Lyon")])
    use = editor.context_use
    assert (use.told, use.cut, use.unfit) == (1, 1, 0)
    assert 0 < use.texts < 4
    read = responder.inner.read[-1]
    assert read == "".join(DEMONSTRATIONS[-use.texts :]) + "Question: x\nFinal answer:"
    responder.loglikelihood([Statement("x", "Lyon and " * 500)])
    assert responder.inner.read[-1] == "Question: x\nFinal answer:"


def test_every_demonstration_is_in_the_format_and_comes_to_its_answer() -> None:
    assert len(DEMONSTRATIONS) == 4
    for one in DEMONSTRATIONS:
        question, *turns = one.split("Retrieved fact: ")
        assert question.startswith("Question: ")
        assert question.count("\n") == 3
        first = parse(question.partition("\n")[2])
        assert first.kind == "subquestion"
        for turn in turns:
            fact, said, rest = turn.split("\n", 2)
            assert fact.endswith(".")
            assert said.startswith("The retrieved fact ")
            changed = "does not contradict" not in said
            answer = rest.split("\n")[0].removeprefix("Intermediate answer: ")
            assert (answer in fact) == changed
        assert parse(rest).kind == "final"
        assert one.endswith(f"Final answer: {answer}\n\n")


def test_scores_of_a_scorer_are_behind_the_dialogue_too() -> None:
    handle = edited(MeLLo(turn_tokens=8, steps=1), FRANCE, positions=1200)
    scorer = Scorer(
        handle.model, handle.tokenizer, responder=handle.editor.responder(handle.ledger.in_force)
    )
    (score,) = [one for one in evaluate(scorer, [FRANCE]) if one.kind == "rewrite"]
    assert score.generated == ""
    assert len(handle.editor._dialogues) == 1


def test_a_corpus_from_a_file_is_that_of_the_requests(tmp_path: Path) -> None:
    import json

    path = tmp_path / "demos.jsonl"
    path.write_text("".join(json.dumps(one.to_dict()) + "\n" for one in corpus()))
    found = told(IKE(str(path), k=8), FRANCE, prompt="x")
    assert found == told(IKE(corpus(), k=8), FRANCE, prompt="x")
