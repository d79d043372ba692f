"""MQuAKE parser (arXiv 2305.14795): cases of several edits behind one multi-hop question.

The files CF, CF-3k (both versions) and T have one format: ``requested_rewrite`` is a list of edits,
``questions`` are three wordings of one question, ``new_single_hops`` the facts that lead to its
answer after the edits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_edit.datamodules.formats.requests import ProbeBuilder, make_request
from lightning_edit.storage.record import Record
from lightning_edit.types import EditRequest, Group, Triple

CRITERION = "multi_hop"


def recognises(values: Mapping[str, Any]) -> bool:
    """Return whether an object has the fields of MQuAKE."""
    return isinstance(values.get("requested_rewrite"), list)


def parse(record: Record) -> list[EditRequest]:
    """Parse one MQuAKE case into its edit requests; the first one holds the multi-hop probes.

    The three questions form one test: one right answer passes it, as in the paper (section 4). Hops
    that no edit of the case writes are its premises: facts that the model must already know. A
    premise holds if the model answers it as a question or as a cloze.

    Note:
        The authors kept cases whose *old* hops GPT-J recalls with demonstrations in its prompt.
        Here no case is filtered; the premises are tested on the model at hand.
    """
    case = _case_id(record)
    rewrites = record.children("requested_rewrite")
    if not rewrites:
        record.fail("requested_rewrite", "at least one edit", [], "remove the record")
    builder = ProbeBuilder(record)
    _add_probes(builder, record, rewrites)
    return [
        _rewrite_request(builder if number == 1 else ProbeBuilder(record), rewrite, case, number)
        for number, rewrite in enumerate(rewrites, start=1)
    ]


def relations(record: Record) -> list[str | None]:
    """Return the relation of each edit of a case, if given."""
    found = [rewrite.values.get("relation_id") for rewrite in record.children("requested_rewrite")]
    return [relation if isinstance(relation, str) else None for relation in found]


def _rewrite_request(builder: ProbeBuilder, rewrite: Record, case: str, number: int) -> EditRequest:
    template, subject = rewrite.text("prompt"), rewrite.text("subject")
    if template.count("{}") != 1:
        rewrite.fail(
            "prompt", "text with one {}", template, "write {} where the subject stands, once"
        )
    question = rewrite.optional_text("question")
    return make_request(
        builder,
        prompt=template.replace("{}", subject),
        target=rewrite.child("target_new").text("str"),
        subject=subject,
        subject_start=template.index("{}"),
        old_target=rewrite.child("target_true").text("str"),
        rephrases=() if question is None else (question,),
        fallback_id=f"{case}-{number}",
        case=case,
    )


def _add_probes(builder: ProbeBuilder, record: Record, rewrites: Sequence[Record]) -> None:
    written = {
        text
        for rewrite in rewrites
        for text in (
            rewrite.optional_text("question"),
            rewrite.text("prompt").replace("{}", rewrite.text("subject")),
        )
    }
    premises = []
    chain = _triple_chain(record)
    for number, hop in enumerate(record.children("new_single_hops"), start=1):
        wordings = (hop.optional_text("question"), hop.optional_text("cloze"))
        if not written.isdisjoint(filter(None, wordings)):
            continue
        name = f"hop {number}"
        before = len(builder.probes)
        for wording in wordings:
            answers = (*hop.answers("answer"), *hop.answers("answer_alias"))
            fact = chain[number - 1 : number]
            builder.add("premise", wording, answers, fact, group=Group(name))
        if len(builder.probes) > before:
            premises.append(name)
    test = Group(CRITERION, CRITERION, "any", tuple(premises))
    answers = (*record.answers("new_answer"), *record.answers("new_answer_alias"))
    old = record.optional_text("answer")
    for question in record.texts("questions"):
        builder.add("multi_hop", question, tuple(dict.fromkeys(answers)), chain, old, test)


def _triple_chain(record: Record) -> list[Triple]:
    if not record.has("orig"):
        return []
    chain = record.child("orig")
    found = chain.items("new_triples_labeled", "a list of triples")
    for item in found:
        if not isinstance(item, list) or [type(part) for part in item] != [str] * 3:
            chain.fail("new_triples_labeled", "lists of three texts", item, "correct or remove it")
    return [(item[0], item[1], item[2]) for item in found]


def _case_id(record: Record) -> str:
    case = record.values.get("case_id", record.where.number)
    if isinstance(case, bool) or not isinstance(case, int | str):
        record.fail("case_id", "a number or text", case, "number the cases, or leave it out")
    return f"mquake-{case}"
