"""Edit requests over the atlas: every answer follows from the graph."""

import pytest

from lightning_edit.atlas import Atlas
from lightning_edit.atlas.facts import unasked_facts
from lightning_edit.atlas.requests import make_requests, split_facts
from lightning_edit.datamodules.atlas import AtlasDataModule
from lightning_edit.types import EditRequest, Probe

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def requests(atlas: Atlas) -> list[EditRequest]:
    return make_requests(atlas, seed=0, split="test")


def probes(requests: list[EditRequest], kind: str) -> list[tuple[EditRequest, Probe]]:
    return [(r, probe) for r in requests for probe in r.probes if probe.kind == kind]


def test_splits_are_disjoint_and_complete(atlas: Atlas) -> None:
    facts = [fact for split in SPLITS for fact in split_facts(atlas, split)]
    assert sorted(facts) == sorted(atlas.triples)
    assert len(set(facts)) == len(facts)
    with pytest.raises(KeyError, match="train, val, test"):
        split_facts(atlas, "dev")


def test_the_first_requests_cover_every_relation(atlas: Atlas) -> None:
    count = len(atlas.relations)
    assert {fact[1] for fact in split_facts(atlas, "test")[:count]} == set(atlas.relations)


@pytest.mark.slow
def test_a_seed_gives_the_same_requests_and_another_seed_others(
    atlas: Atlas, requests: list[EditRequest]
) -> None:
    assert make_requests(atlas, seed=0, split="test") == requests
    other = make_requests(atlas, seed=1, split="test")
    assert [r.id for r in other] == [r.id for r in requests]
    assert other != requests


def test_a_request_changes_the_object_to_another_of_the_relation(
    atlas: Atlas, requests: list[EditRequest]
) -> None:
    assert len({r.id for r in requests}) == len(requests)
    objects = {
        name: {atlas.entities[triple[2]].text for triple in atlas.triples_of(name)}
        for name in atlas.relations
    }
    for request in requests:
        relation, subject = request.id.split(":")
        truth = atlas.object_of(subject, relation)
        assert truth is not None
        assert request.old_target == atlas.entities[truth].text
        assert request.target in objects[relation] - {request.old_target}
        assert request.subject == subject
        assert len(set(request.rephrases)) == 4
        assert request.prompt not in request.rephrases
        assert sum(rephrase.endswith("?") for rephrase in request.rephrases) == 2


def test_rephrases_are_half_unseen(stated: dict[str, str], requests: list[EditRequest]) -> None:
    for request in requests:
        assert request.prompt in stated
        assert [rephrase in stated for rephrase in request.rephrases] == [True, True, False, False]


def test_locality_probes_ask_for_trained_facts(
    atlas: Atlas, stated: dict[str, str], requests: list[EditRequest]
) -> None:
    for kind in ("neighborhood", "other_attribution", "distracting_neighbor"):
        found = probes(requests, kind)
        assert found
        for request, probe in found:
            prompt = probe.prompt
            if kind == "distracting_neighbor":
                edited = f"{request.prompt} {request.target}. "
                assert prompt.startswith(edited)
                prompt = prompt.removeprefix(edited)
            assert probe.answers[0] == stated[prompt]
            assert probe.expect == "unchanged"
            (path,) = probe.path
            assert path in atlas.triples
            relation = request.id.split(":")[0]
            assert (path[0] == request.subject) is (kind == "other_attribution")
            assert (path[1] == relation) is (kind != "other_attribution")
            assert probe.answers[0] != request.target or kind == "other_attribution"


def test_neighbours_share_the_old_object_where_some_do(requests: list[EditRequest]) -> None:
    shared = [
        probe.answers[0] == request.old_target
        for request, probe in probes(requests, "neighborhood")
        if request.id.startswith("continent:") and request.old_target in ("Europe", "Africa")
    ]
    assert shared
    assert all(shared)


def test_portability_answers_follow_from_the_edit(
    atlas: Atlas, requests: list[EditRequest]
) -> None:
    for request, probe in probes(requests, "subject_alias"):
        assert any(alias in probe.prompt for alias in atlas.entities[str(request.subject)].aliases)
        assert probe.answers[0] == request.target
    for request, probe in probes(requests, "reversed_relation"):
        ((subject, relation, target),) = probe.path
        assert atlas.relations[relation].inverse is not None
        assert target in probe.prompt
        assert request.target == atlas.entities[target].text
        assert probe.answers == atlas.entities[subject].answers
    for request, probe in probes(requests, "one_hop"):
        (subject, _, target), (middle, relation, end) = probe.path
        assert subject in probe.prompt
        assert target == middle
        assert request.target == atlas.entities[target].text
        assert atlas.object_of(middle, relation) == end
        assert probe.answers == atlas.entities[end].answers
    for kind in ("subject_alias", "reversed_relation", "one_hop"):
        assert len(probes(requests, kind)) >= 50


def test_the_data_module_streams_the_requests_of_its_split(requests: list[EditRequest]) -> None:
    data = AtlasDataModule(limit=20, batch_size=8)
    data.setup("edit")
    assert data.edit_requests() == requests[:20]
    assert [len(batch) for batch in data.test_dataloader()] == [8, 8, 4]


def test_facts_to_watch_are_neither_edited_nor_scored_on(
    atlas: Atlas, requests: list[EditRequest]
) -> None:
    facts = unasked_facts(atlas)
    asked = set()
    for request in requests:
        asked.add(request.id)
        for probe in request.probes:
            if probe.aspect == "locality":
                asked |= {f"{relation}:{subject}" for subject, relation, _ in probe.path}
    assert len(facts) > 500
    assert not {fact.id for fact in facts} & asked
    assert all(fact.subject is not None and fact.subject in fact.prompt for fact in facts)


def test_the_same_facts_may_be_asked_as_questions(
    atlas: Atlas, requests: list[EditRequest]
) -> None:
    asked = AtlasDataModule(questions=True).edit_requests()
    assert [r.id for r in asked] == [r.id for r in requests]
    for request in asked:
        assert request.prompt.endswith("?")
        start = request.subject_start
        assert start is not None
        assert request.prompt[start:].startswith(request.subject)
        assert request.prompt not in request.rephrases
        local = [p for p in request.probes if p.aspect == "locality" and p.kind != "other_task"]
        assert all(probe.prompt.endswith("?") for probe in local)
        distracting = [p for p in local if p.kind == "distracting_neighbor"]
        assert all(p.prompt.startswith(f"{request.prompt} {request.target}. ") for p in distracting)
    assert not any(r.prompt.endswith("?") for r in requests)
