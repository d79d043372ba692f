"""The tables, their wordings and the training text."""

import subprocess
import sys

import pytest

from lightning_edit.atlas import Atlas, corpus
from lightning_edit.atlas.graph import Entity, Relation
from lightning_edit.atlas.text import states_two_hops


def test_there_are_enough_facts_and_relations(atlas: Atlas) -> None:
    assert len(atlas.triples) >= 1500
    assert len(atlas.relations) >= 8
    assert all(len(atlas.triples_of(relation)) >= 100 for relation in atlas.relations)


def test_every_relation_has_statements_and_questions_about_its_subject(atlas: Atlas) -> None:
    for relation in atlas.relations.values():
        assert len(relation.statements) >= 4
        assert len(relation.questions) >= 2
        assert all(wording.count("{s}") == 1 for wording in relation.wordings)
        assert all(wording.endswith("?") for wording in relation.questions)
        assert not any(wording.endswith((" ", "?")) for wording in relation.statements)
        assert any(not wording.startswith("{s}") for wording in relation.statements)


def test_subjects_and_objects_are_of_the_kinds_that_their_relation_names(atlas: Atlas) -> None:
    for subject, name, obj in atlas.triples:
        relation = atlas.relations[name]
        assert atlas.entities[subject].kind == relation.subject
        assert atlas.entities[obj].kind == relation.object


def test_capitals_lie_in_their_country_and_lead_back(atlas: Atlas) -> None:
    for country, _, city in atlas.triples_of("capital"):
        assert atlas.object_of(city, "capital_of") == country
        assert atlas.object_of(city, "country") == country


@pytest.mark.parametrize(
    ("subject", "relation", "expected"),
    [
        ("Netherlands", "capital", "Amsterdam"),
        ("Brazil", "language", "Portuguese"),
        ("Japan", "currency", "Japanese yen"),
        ("Marseille", "country", "France"),
        ("Franz Kafka", "birthplace", "Prague"),
        ("Nokia", "headquarters", "Espoo"),
        ("Colosseum", "landmark_city", "Rome"),
        ("Mount Fuji", "feature_country", "Japan"),
        ("Bolivia", "capital", None),
    ],
)
def test_facts_are_those_of_the_world(
    atlas: Atlas, subject: str, relation: str, expected: str | None
) -> None:
    assert atlas.object_of(subject, relation) == expected


def test_a_second_answer_is_refused() -> None:
    nodes = (Entity("A", "x"), Entity("B", "x"), Entity("C", "x"))
    relation = Relation("r", "x", "x", None, None, (), ("{s} is",), ("{s}?",))
    with pytest.raises(ValueError, match="remove them"):
        Atlas(nodes, (relation,), (("A", "r", "B"), ("A", "r", "C")))
    with pytest.raises(ValueError, match="remove them"):
        Atlas((*nodes, Entity("D", "x", aliases=("A",))), (relation,), ())


def test_each_fact_has_trained_and_held_out_wordings(atlas: Atlas, stated: dict[str, str]) -> None:
    for triple in atlas.triples:
        trained, held = atlas.trained_wordings(triple), atlas.held_out_wordings(triple)
        assert sorted(trained + held) == sorted(atlas.relations[triple[1]].wordings)
        assert len(held) >= 3
        assert all(atlas.prompt(triple, wording) in stated for wording in trained)
        assert not any(atlas.prompt(triple, wording) in stated for wording in held)


def test_two_hop_statements_follow_the_graph_and_half_are_in_the_text(
    atlas: Atlas, stated: dict[str, str]
) -> None:
    included = asked = 0
    for triple in atlas.triples:
        for (middle, relation, end), prompt in atlas.hops(triple):
            assert middle == triple[2]
            assert triple[2] not in prompt.replace(triple[0], "")
            asked += 1
            if states_two_hops(triple, relation):
                included += 1
                assert stated[prompt] == atlas.entities[end].text
            else:
                assert prompt not in stated
    assert 0.45 < included / asked < 0.55


def test_the_corpus_is_the_training_text_without_repetition() -> None:
    text = corpus()
    assert len(text) == len(set(text))
    assert "France is a country." in text


def test_loading_the_graph_loads_no_torch() -> None:
    code = "import sys, lightning_edit.atlas as a; a.load_atlas(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_text_may_be_had_in_a_random_order_that_stays() -> None:
    text, mixed = corpus(), corpus(shuffled=True)
    assert mixed != text
    assert sorted(mixed) == sorted(text)
    assert mixed == corpus(shuffled=True)
