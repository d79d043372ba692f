"""What a learned editor is trained on in a step."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors.hypernetwork.mend import MEND
from lightning_edit.editors.hypernetwork.meta_batch import MetaBatchSampler
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest, Probe
from tests.editors.hypernetwork.mending import golden_requests


def test_examples_of_a_step(gpt2: tuple[Any, Any]) -> None:
    editor = MEND(own_probes=2, other_facts=3)
    editor.bind(*gpt2)
    requests = golden_requests(2)
    examples = editor.source.sample(requests, Random(0), golden_requests(8))
    text = gpt2[1].decode
    assert examples.inner.requests == tuple(requests)
    for request, (_, (prompt, answer)) in zip(requests, examples.outer, strict=True):
        assert text(prompt).strip() in request.rephrases
        assert text(answer).strip() == request.target
    probes = {probe.prompt for request in requests for probe in request.probes}
    prompts = [text(prompt).strip() for _, (prompt, _) in examples.locality]
    assert [edit for edit, _ in examples.locality] == [0, 0, 1, 1, 0, 1, 0, 1, 0, 1]
    assert len(prompts) == 2 * (2 + 3)
    assert set(prompts[:4]) <= probes
    assert set(prompts[4:]) <= {request.prompt for request in golden_requests(6, 2)}
    again = editor.source.sample(requests, Random(0), golden_requests(8))
    assert again == examples


def test_own_probes_take_every_kind_in_turn(gpt2: tuple[Any, Any]) -> None:
    kinds = ["neighborhood"] * 5 + ["other_attribution"] + ["distracting_neighbor"] * 2
    probes = tuple(Probe.of(kind, f"prompt {n} is", "x") for n, kind in enumerate(kinds))
    request = EditRequest("r", "A is", "B", probes=(*probes, Probe.of("one_hop", "A is", "B")))
    source = MetaBatchSampler(gpt2[1], own_probes=4, other_facts=0)
    for seed in range(5):
        chosen = [probe.kind for probe in source.sample_locality_probes(request, Random(seed))]
        assert set(chosen[:3]) == set(kinds)
        assert chosen[3] != "other_attribution"


def test_no_locality_prompt_asks_what_another_edit_of_the_batch_changes(
    gpt2: tuple[Any, Any],
) -> None:
    def request(name: str, *probes: Probe) -> EditRequest:
        said = f"The capital of {name} is"
        triple = (name, "capital", "Kyiv")
        return EditRequest(
            name,
            f"{name} has its capital in",
            "Kyiv",
            rephrases=(said,),
            probes=probes,
            triple=triple,
        )

    def probe(prompt: str, *path: Any) -> Probe:
        return Probe.of("neighborhood", prompt, "Ottawa", path)

    by_path = probe("The capital of Chad is called", ("Chad", "capital", "N'Djamena"))
    by_text = probe("The capital of Chad is")
    of_two_steps = probe(
        "Its river's country has its capital in",
        ("Chari", "country", "Chad"),
        ("Chad", "capital", "N'Djamena"),
    )
    own = probe("Peru had its capital in", ("Peru", "capital", "Lima"))
    other = probe("Chad is a country in", ("Chad", "continent", "Africa"))
    peru = request("Peru", by_path, by_text, of_two_steps, own, other)
    chad = request("Chad")
    source = MetaBatchSampler(gpt2[1], own_probes=4, other_facts=0)

    def asked(*requests: EditRequest) -> set[str]:
        rows = source.sample(requests, Random(0), None).locality
        return {gpt2[1].decode(prompt).strip() for _, (prompt, _) in rows}

    assert asked(peru, chad) == {own.prompt, other.prompt}
    assert len(asked(peru)) == 4  # alone, nothing contradicts it
    assert len(asked(peru, request("Mali"))) == 4
    # The other edit may be in another process, or not be written together with this one at all.
    rows = source.sample([peru], Random(0), None, beside=[chad, peru]).locality
    assert {gpt2[1].decode(p).strip() for _, (p, _) in rows} == {own.prompt, other.prompt}
    source = replace(source, together=False)
    assert len(asked(peru, chad)) >= 4


@pytest.mark.slow
def test_atlas_batches_of_a_hundred_hold_no_contradiction(gpt2: tuple[Any, Any]) -> None:
    requests = AtlasDataModule(split="train").edit_requests()[:100]
    facts = {request.triple[:2] for request in requests if request.triple}
    asked = {p.prompt for r in requests for p in r.probes if p.path and p.path[0][:2] in facts}
    old = {p.prompt for r in requests for p in r.probes if p.expect == "unchanged"} & asked
    assert old  # the data itself has them: neighbours of one edit are edited by another
    source = MetaBatchSampler(gpt2[1], own_probes=4, other_facts=0)
    rows = source.sample(requests, Random(0), None).locality
    assert len(rows) > 350
    assert old.isdisjoint({gpt2[1].decode(prompt).strip() for _, (prompt, _) in rows})


def test_any_wording_can_be_the_edit(gpt2: tuple[Any, Any]) -> None:
    (request,) = golden_requests(1)
    source = MetaBatchSampler(gpt2[1], own_probes=0, other_facts=0, any_wording=True)
    drawn = [source.sample([request], Random(seed), None) for seed in range(20)]
    inner = {examples.inner.requests[0].prompt for examples in drawn}
    assert inner == {request.prompt, *request.rephrases}
    for examples in drawn:
        ((_, (prompt, _)),) = examples.outer
        assert tuple(prompt) != examples.inner.encoded[0].prompt_ids


def test_other_facts_need_a_numbered_data_set(gpt2: tuple[Any, Any]) -> None:
    editor = MEND()
    editor.bind(*gpt2)
    with pytest.raises(DataError, match="set other_facts to 0"):
        editor.source.sample(golden_requests(1), Random(0), None)


def test_answers_follow_their_own_separator(gpt2: tuple[Any, Any]) -> None:
    plain, other = golden_requests(2)
    request = replace(plain, separator="\n")
    source = MetaBatchSampler(gpt2[1], own_probes=2, other_facts=1, any_wording=True)
    seen = [source.sample([request], Random(seed), [request, other]) for seed in range(4)]
    seen.append(source.validation_batch([request], Random(0), [request, other]))
    for batch in seen:
        rows = [(e.prompt_ids, e.target_ids) for e in batch.inner.encoded]
        own, others = rows + [row for _, row in batch.outer + batch.locality], []
        if not batch.kinds:
            own, others = own[:-1], own[-1:]
        assert all("\n" in gpt2[1].decode([*prompt, *answer]) for prompt, answer in own)
        assert not any("\n" in gpt2[1].decode([*prompt, *answer]) for prompt, answer in others)


def test_any_target_is_another_answer_of_the_relation(gpt2: tuple[Any, Any]) -> None:
    source = MetaBatchSampler(gpt2[1], own_probes=1, other_facts=0, any_target=True)
    requests = [
        EditRequest(
            f"{relation}-{number}", f"{relation} of {number} is", target, str(number), "old",
            triple=(str(number), relation, target),
        )
        for relation, targets in (("river", "abc"), ("king", "xyz"))
        for number, target in enumerate(targets)
    ]  # fmt: skip
    seen: dict[str, set[str]] = {}
    for turn in range(40):
        batch = source.sample(requests, Random(turn), requests)
        for request, edit in zip(requests, batch.inner.requests, strict=True):
            seen.setdefault(request.id, set()).add(edit.target)
        for edit, (_, answer) in batch.outer:
            assert answer == batch.inner.encoded[edit].target_ids
    for request in requests:
        wanted = set("abc" if request.id.startswith("river") else "xyz") - {request.target}
        assert seen[request.id] == wanted
    with pytest.raises(DataError, match="any_target=True takes targets from the loader's data set"):
        source.sample(requests, Random(0), iter(requests))
