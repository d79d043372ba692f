"""The atlas as facts with prompts, for ripple effects. Nothing here imports torch."""

from lightning_edit.atlas.graph import Atlas
from lightning_edit.atlas.requests import make_requests, split_facts
from lightning_edit.types import EditRequest
from lightning_edit.types.facts import Fact


def atlas_facts(atlas: Atlas) -> list[Fact]:
    """Return every triple with the first wording in which the language model was trained on it.

    Args:
        atlas: The graph.
    """
    facts = []
    for triple in atlas.triples:
        statements = atlas.relations[triple[1]].statements
        wording = next(w for w in atlas.trained_wordings(triple) if w in statements)
        prompt = atlas.prompt(triple, wording)
        answers = atlas.entities[triple[2]].answers
        facts.append(Fact(*triple, prompt, answers))
    return facts


def unasked_facts(atlas: Atlas, seed: int = 0) -> list[EditRequest]:
    """Return facts for a method to watch: no test request edits them or asks for them unchanged.

    Args:
        atlas: The graph.
        seed: That of the test requests, whose probes it draws.

    Returns:
        One request a fact, whose target is its true object.
    """
    taken = set(split_facts(atlas, "test"))
    for request in make_requests(atlas, seed, "test"):
        for probe in request.probes:
            taken |= set(probe.path) if probe.aspect == "locality" else set()
    return [
        EditRequest(
            id=f"{fact.relation}:{fact.subject}",
            prompt=fact.prompt,
            target=fact.answers[0],
            subject=fact.subject,
        )
        for fact in atlas_facts(atlas)
        if (fact.subject, fact.relation, fact.object) not in taken
    ]
