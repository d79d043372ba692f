"""Counterfactual edit requests from the atlas, with probes whose answers the graph determines.

Nothing here imports torch.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

from lightning_edit.atlas.graph import Atlas, fill
from lightning_edit.types import EditRequest, Probe, Triple

#: Share of each relation's facts in each split.
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
NEIGHBOURS = 5
DISTRACTING_NEIGHBOURS = 2
OTHER_ATTRIBUTES = 3
ONE_HOPS = 2


def split_facts(atlas: Atlas, split: str) -> tuple[Triple, ...]:
    """Return the facts of a split in a fixed order, round-robin over the relations.

    The splits depend on no seed: a fact that an editor was trained on is never a test fact.

    Raises:
        KeyError: If there is no such split.
    """
    names = list(SHARES)
    begin = sum(SHARES[name] for name in names[: names.index(split)]) if split in SHARES else None
    if begin is None:
        raise KeyError(
            f"the atlas has the splits {', '.join(names)}; got {split!r}; use one of them"
        )
    columns: list[Sequence[Triple]] = []
    for relation in atlas.relations:
        facts = list(atlas.triples_of(relation))
        random.Random(f"split/{relation}").shuffle(facts)
        end = begin + SHARES[split]
        columns.append(facts[round(begin * len(facts)) : round(end * len(facts))])
    in_turn = chain.from_iterable(zip_longest(*columns))
    return tuple(fact for fact in in_turn if fact is not None)


def make_requests(
    atlas: Atlas, seed: int, split: str, questions: bool = False
) -> list[EditRequest]:
    """Generate a counterfactual edit request for each fact of a split.

    Args:
        atlas: The graph.
        seed: Seed of the wordings, new objects and probes.
        split: ``train``, ``val`` or ``test``.
        questions: Whether prompts and locality probes are questions, as in zsRE, instead of
            statements, as in COUNTERFACT.

    Returns:
        Requests whose target is another object of the same relation. Locality probes use wordings
        in which the language model was trained on the probed fact.
    """
    return [
        _request(atlas, fact, random.Random(f"{seed}/{fact[0]}/{fact[1]}"), questions)
        for fact in split_facts(atlas, split)
    ]


def _of_form(atlas: Atlas, fact: Triple, questions: bool) -> list[str]:
    """Return the trained wordings of a fact that are statements, or those that are questions."""
    statements = atlas.relations[fact[1]].statements
    return [w for w in atlas.trained_wordings(fact) if (w not in statements) is questions]


def _request(atlas: Atlas, fact: Triple, draw: random.Random, questions: bool) -> EditRequest:
    subject, name, old = fact
    wording = draw.choice(_of_form(atlas, fact, questions))
    target = _new_object(atlas, fact, draw)
    edited = (subject, name, target)
    prompt = atlas.prompt(fact, wording)
    article = "the " if atlas.entities[subject].article else ""
    return EditRequest(
        id=f"{name}:{subject}",
        prompt=prompt,
        target=atlas.entities[target].text,
        subject=subject,
        old_target=atlas.entities[old].text,
        rephrases=tuple(atlas.prompt(fact, w) for w in _rephrases(atlas, fact, wording, draw)),
        probes=(
            *_locality_probes(atlas, fact, target, prompt, draw, questions),
            *_portability_probes(atlas, edited, wording, draw),
        ),
        subject_start=wording.index("{s}") + len(article),
        triple=edited,
    )


def _new_object(atlas: Atlas, fact: Triple, draw: random.Random) -> str:
    """Sample a counterfactual object, preferably one that occurs with several subjects."""
    subject, name, _ = fact
    counts = Counter(obj for _, _, obj in atlas.triples_of(name))
    true = {obj for _, _, obj in atlas.about(subject)}
    others = [obj for obj in counts if obj not in true and obj != subject]
    frequent = [obj for obj in others if counts[obj] > 1]
    return draw.choice(frequent if len(frequent) > 1 else others)


def _rephrases(atlas: Atlas, fact: Triple, used: str, draw: random.Random) -> Iterator[str]:
    """Sample rephrases: a statement and a question, from trained and from held-out wordings."""
    for wordings in (atlas.trained_wordings(fact), atlas.held_out_wordings(fact)):
        for questions in (False, True):
            pool = [w for w in wordings if w.endswith("?") is questions and w != used]
            yield draw.choice(pool)


def _make_probe(
    atlas: Atlas, fact: Triple, draw: random.Random, kind: str, questions: bool, before: str = ""
) -> Probe:
    wording = draw.choice(_of_form(atlas, fact, questions))
    answers = atlas.entities[fact[2]].answers
    return Probe.of(kind, before + atlas.prompt(fact, wording), answers, (fact,))


def _locality_probes(
    atlas: Atlas, fact: Triple, target: str, prompt: str, draw: random.Random, questions: bool
) -> Iterator[Probe]:
    subject, _, old = fact
    # A neighbour whose object is the new one already cannot show whether the edit leaked.
    neighbours = [n for n in atlas.neighbours(fact) if n[2] != target]
    sharing = [n for n in neighbours if n[2] == old]
    others = [n for n in neighbours if n[2] != old]
    chosen = draw.sample(sharing, min(NEIGHBOURS, len(sharing)))
    chosen += draw.sample(others, NEIGHBOURS - len(chosen))
    for neighbour in chosen:
        yield _make_probe(atlas, neighbour, draw, "neighborhood", questions)
    # An attribute with the same answer may have to change with the edit: the country of a city,
    # and the country that it is the capital of.
    attributes = [other for other in atlas.about(subject) if other[2] != old]
    for attribute in draw.sample(attributes, min(OTHER_ATTRIBUTES, len(attributes))):
        yield _make_probe(atlas, attribute, draw, "other_attribution", questions)
    statement = f"{prompt} {atlas.entities[target].text}. "
    for neighbour in chosen[:DISTRACTING_NEIGHBOURS]:
        yield _make_probe(atlas, neighbour, draw, "distracting_neighbor", questions, statement)


def _portability_probes(
    atlas: Atlas, edited: Triple, wording: str, draw: random.Random
) -> Iterator[Probe]:
    subject, name, target = edited
    for alias in atlas.entities[subject].aliases:
        prompt = atlas.prompt(edited, wording, alias)
        yield Probe.of("subject_alias", prompt, atlas.entities[target].answers, (edited,))
    inverse = atlas.relations[name].inverse
    if inverse is not None:
        prompt = fill(atlas.relations[inverse].statements[0], atlas.entities[target].text)
        yield Probe.of("reversed_relation", prompt, atlas.entities[subject].answers, (edited,))
    hops = list(atlas.hops(edited))
    for hop, prompt in draw.sample(hops, min(ONE_HOPS, len(hops))):
        yield Probe.of("one_hop", prompt, atlas.entities[hop[2]].answers, (edited, hop))
