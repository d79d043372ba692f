"""Atlas facts with prompts, for ripple-effect measurements. Nothing here imports torch."""

from lightning_edit.atlas.graph import Atlas
from lightning_edit.atlas.requests import make_requests, split_facts
from lightning_edit.types import EditRequest
from lightning_edit.types.facts import Fact


def atlas_facts(atlas: Atlas) -> list[Fact]:
    """Return every triple as a fact, prompted with its first trained statement.

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
    """Return facts for a method to monitor, which no test request edits or probes for locality.

    Args:
        atlas: The graph.
        seed: Seed of the test requests, which determines their probes.

    Returns:
        One request per fact, whose target is the true object.
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
