"""Facts, their distances from an edit, and how they are read from a model."""

import json
import random
from collections import deque
from pathlib import Path

import pytest
import torch

from lightning_edit.atlas.facts import atlas_facts
from lightning_edit.atlas.graph import load_atlas
from lightning_edit.atlas.requests import make_requests
from lightning_edit.evaluation.fact_reader import REPRESENTATIONS, FactReader
from lightning_edit.evaluation.knowledge_graph import FactGraph, facts_of, read_facts
from lightning_edit.evaluation.neighbourhoods import choose_neighbourhoods
from lightning_edit.exceptions import ArchitectureError, DataError
from lightning_edit.functional.ripple import cosine, percentile, token_ranks
from lightning_edit.types import EditRequest, Probe
from lightning_edit.types.facts import Fact
from tests.models.tiny import build_tiny, build_tokenizer

TOKENIZER = build_tokenizer(bos=True)
FACTS = [
    Fact("France", "capital", "Paris", "The capital of France is", ("Paris",)),
    Fact("Lyon", "country", "France", "Lyon lies in", ("France too",)),
    Fact("Italy", "capital", "Rome", "What is the capital of Italy?", ("Rome",)),
    Fact("Arles", "country", "France", "Arles lies in", ("France",), "Arles"),
]


def edit(subject: str, target: str, **fields: object) -> EditRequest:
    prompt = f"The capital of {subject} is"
    return EditRequest("e", prompt, target, subject, **fields)


def steps(facts: list[Fact], starts: set[str], fact: Fact) -> int | None:
    """Count the steps from some entities to a fact, breadth first."""
    seen, queue = set(starts), deque((name, 0) for name in starts)
    while queue:
        name, length = queue.popleft()
        if name in (fact.subject, fact.object):
            return length + 1
        for other in facts:
            ends = (other.subject, other.object)
            for end in ends if name in ends else ():
                if end not in seen:
                    seen.add(end)
                    queue.append((end, length + 1))
    return None


@pytest.mark.parametrize("seed", range(5))
def test_distances_equal_a_search_breadth_first(seed: int) -> None:
    draw = random.Random(seed)
    facts = [
        Fact(f"n{a}", "r", f"n{b}", f"n{a} r", (f"n{b}",))
        for a, b in {(draw.randrange(30), draw.randrange(30)) for _ in range(22)}
    ]
    graph = FactGraph(facts)
    request = EditRequest("e", "x", "y", triple=("n1", "q", "n2"), old_target="n3")
    assert graph.distances(request) == [steps(facts, {"n1", "n2", "n3"}, f) for f in graph.facts]


def test_an_edit_is_found_by_its_texts_or_its_triple() -> None:
    graph = FactGraph(FACTS)
    assert graph.distances(edit("france", "Rome.")) == [1, 1, 1, 1]
    assert graph.distances(edit("Lyon", "Berlin")) == [2, 1, None, 2]
    assert graph.distances(edit("X", "Y", triple=("Italy", "capital", "Y"))) == [
        None, None, 1, None,
    ]  # fmt: skip
    assert graph.distances(edit("X", "Y")) == [None] * 4
    # The old object of an edited fact is known from the graph.
    assert FactGraph([*FACTS, Fact("Paris", "x", "Z", "p", ("Z",))]).distances(
        edit("X", "Y", triple=("France", "capital", "Y"))
    ) == [1, 1, None, 1, 1]


def test_edited_facts_are_known_by_relation_or_prompt() -> None:
    graph = FactGraph(FACTS)
    assert graph.is_edited([edit("France", "Rome")]) == [True, False, False, False]
    about = edit("X", "Y", triple=("the Italy", "capital", "Y"))
    assert graph.is_edited([about]) == [False, False, True, False]


def test_the_atlas_gives_facts_and_so_do_probes() -> None:
    atlas = load_atlas()
    facts = atlas_facts(atlas)
    assert len(facts) == len(atlas.triples)
    assert all(fact.subject_end is not None for fact in facts)
    requests = make_requests(atlas, 0, "test")[:30]
    stated = facts_of(requests)
    triples = set(atlas.triples)
    assert stated
    assert all((fact.subject, fact.relation, fact.object) in triples for fact in stated)
    probe = Probe.of("neighborhood", "a b", "c", (("a", "r", "b"), ("b", "r", "c")))
    assert facts_of([EditRequest("e", "x", "y", probes=(probe,))]) == []


def test_facts_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    row = {"subject": "a", "relation": "r", "object": "b", "prompt": "a r"}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "answers": ["c", "d"]}))
    assert [fact.answers for fact in read_facts(path)] == [("b",), ("c", "d")]
    for change, message in [
        ({"objekt": 1}, "unknown field `objekt`.*Did you mean `object`"),
        ({"prompt": ""}, "field `prompt`: expected text, got empty text"),
    ]:
        path.write_text(json.dumps({**row, **change}))
        with pytest.raises(DataError, match=message):
            read_facts(path)


@torch.no_grad()
def by_hand(model: torch.nn.Module, fact: Fact) -> tuple[float, int, torch.Tensor]:
    """Ask for one fact without batches; the last block's input states come along."""
    before = TOKENIZER(fact.prompt)["input_ids"]
    ids = TOKENIZER(f"{fact.prompt} {fact.answers[0]}")["input_ids"]
    output = model(torch.tensor([ids]), output_hidden_states=True)
    logits = output.logits[0, len(before) - 1 : -1]
    nlls, ranks = [], []
    for row, token in zip(logits, ids[len(before) :], strict=True):
        nlls.append(-row.double().log_softmax(-1)[token].item())
        ranks.append(1 + sum(score > row[token].item() for score in row.tolist()))
    return sum(nlls) / len(nlls), max(ranks), output.hidden_states[1][0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_outcomes_and_representations_equal_those_by_hand(family: str, side: str) -> None:
    model = build_tiny(family)
    TOKENIZER.padding_side = side
    for size in (1, 3):
        read = {
            name: FactReader(model, TOKENIZER, name, layer=0, batch_size=size).read(FACTS)
            for name in REPRESENTATIONS
        }
        for number, fact in enumerate(FACTS):
            nll, rank, states = by_hand(model, fact)
            length = len(TOKENIZER(fact.prompt)["input_ids"])
            subject = TOKENIZER(fact.prompt[: fact.subject_end])["input_ids"]
            expected = {
                "last_token": states[length - 1],
                "subject_last": states[len(subject) - 1],
                "mean": states[:length].mean(0),
            }
            for name, (outcomes, vectors) in read.items():
                assert outcomes[number].nll == pytest.approx(nll, abs=1e-5)
                assert outcomes[number].rank == rank
                if name in expected:
                    torch.testing.assert_close(
                        vectors[number], expected[name], atol=1e-5, rtol=1e-4
                    )
            assert read["key"][1].shape[1] != states.shape[1]
    assert FactReader(model, TOKENIZER).outcomes([]) == []


def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(ArchitectureError, match="encoder-decoder"):
        FactReader(build_tiny("t5"), TOKENIZER)
    long = Fact("a", "r", "b", "the capital " * 200, ("b",))
    with pytest.raises(DataError, match="the model takes"):
        FactReader(build_tiny("gpt2"), TOKENIZER).outcomes([long])


def test_sets_are_apart_and_near_is_the_closest_of_the_far() -> None:
    draw = random.Random(0)
    distances = [draw.choice([None, 1, 2, 3, 4]) for _ in range(200)]
    similar = [draw.uniform(-1, 1) for _ in range(200)]
    usable = [draw.random() < 0.8 for _ in range(200)]
    chosen = choose_neighbourhoods(distances, similar, usable, 15, random.Random(1))
    assert len({place.fact for place in chosen}) == len(chosen) == 60
    assert all(usable[place.fact] for place in chosen)
    far = [n for n in range(200) if usable[n] and distances[n] not in (1, 2)]
    closest = sorted(far, key=lambda n: similar[n])[-15:]
    sets = {name: [p.fact for p in chosen if p.set == name] for name in ("near", "random")}
    assert sorted(sets["near"]) == sorted(closest)
    assert set(sets["random"]) <= set(far) - set(closest)
    for step in (1, 2):
        assert {distances[p.fact] for p in chosen if p.set == f"hop_{step}"} == {step}
    assert choose_neighbourhoods(distances, similar, usable, 15, random.Random(1)) == chosen
    assert choose_neighbourhoods([1], [0.5], [False], 3, draw) == []


def test_formulas() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    found = cosine(vectors, torch.tensor([[4.0, 3.0], [-3.0, -4.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.96, -1.0], [0.0, 0.0]]).double())
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [1.0, float("nan"), 0.0]])
    assert token_ranks(logits, torch.tensor([0, 1, 1])).tolist() == [3, 1, 3]
    values = torch.arange(100) / 100 + 0.005
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert float(percentile(values[order], 0.95)) == pytest.approx(0.945)
    assert float(percentile(torch.arange(20.0), 0.95)) == 18
    assert float(percentile(torch.tensor([7.0]), 0.95)) == 7


@pytest.mark.parametrize("around", [0.0, 0.01, -0.005, 1.0])
def test_a_percentile_moves_as_far_as_its_values(around: float) -> None:
    rounding = 1e-9
    below, above = (percentile(torch.full((9,), around + e).double(), 0.95) for e in (-1e-9, 1e-9))
    assert float(above - below) <= 2 * rounding * 1.01
