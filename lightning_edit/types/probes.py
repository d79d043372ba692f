"""Probes: test prompts for an edit, their kinds, and the aspects that they are scored in.

Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Expect = Literal["target", "unchanged", "answer"]
Mode = Literal["tf", "gen"]
Rule = Literal["any", "all"]
Triple = tuple[str, str, str]
#: Aspect of the report by kind of probe.
ASPECT_OF_KIND: Mapping[str, str] = {
    "rewrite": "reliability",
    "rephrase": "generalization",
    "neighborhood": "locality",
    "other_attribution": "locality",
    "distracting_neighbor": "locality",
    "other_task": "locality",
    "natural_question": "locality",
    "relation_specificity": "locality",
    "forgetfulness": "locality",
    "subject_alias": "portability",
    "reversed_relation": "portability",
    "one_hop": "portability",
    "multi_hop": "portability",
    "open_question": "understanding",
    "negation": "understanding",
    "fact_check": "understanding",
    "known_fact": "known",
    "premise": "premise",
}
#: Aspect by criterion, the name of the score of tests that consist of several probes.
ASPECT_OF_CRITERION: Mapping[str, str] = {
    "multi_hop": "portability",
    "logical_generalization": "portability",
    "compositionality_i": "portability",
    "compositionality_ii": "portability",
    "subject_aliasing": "portability",
    "relation_specificity": "locality",
    "forgetfulness": "locality",
}
#: Default expectation of a probe, by aspect.
_EXPECT_OF_ASPECT: Mapping[str, Expect] = {
    "reliability": "target",
    "generalization": "target",
    "locality": "unchanged",
    "portability": "answer",
    "understanding": "answer",
    "known": "answer",
    "premise": "answer",
}


def require(condition: bool, message: str) -> None:
    """Validate a condition; raise ``ValueError`` with this message if it is false."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Group:
    """Group of probes that form one test, as in MQuAKE and RippleEdits.

    Args:
        name: Name of the test, unique in its case; probes of one test have equal groups.
        criterion: One of :data:`ASPECT_OF_CRITERION`, for the score; ``None`` for a premise.
        rule: ``any``: one right answer passes the test. ``all``: every answer must be right.
        premises: Names of tests of kind ``premise`` that the pristine model must pass for this one
            to say anything about the edit.

    Raises:
        ValueError: On an empty name, or an unknown criterion or rule.
    """

    name: str
    criterion: str | None = None
    rule: Rule = "any"
    premises: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = ", ".join(ASPECT_OF_CRITERION)
        require(bool(self.name.strip()), "a group of probes has no name; give it one")
        require(
            self.criterion is None or self.criterion in ASPECT_OF_CRITERION,
            f"criterion {self.criterion!r} is unknown; use one of {known}",
        )
        rules = get_args(Rule)
        require(self.rule in rules, f"rule {self.rule!r} is unknown; use one of {rules}")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Group":
        """Build a group from the output of :func:`dataclasses.asdict`."""
        return cls(**{**record, "premises": tuple(record.get("premises", ()))})


@dataclass(frozen=True)
class Probe:
    """Probe: a prompt that is scored before and after an edit, with its accepted answers.

    Args:
        kind: One of :data:`ASPECT_OF_KIND`.
        prompt: Text the model continues.
        answers: Accepted answers, the preferred one first; the others are aliases.
        expect: ``target``: the edit's target is right. ``unchanged``: the pristine model's answer
            must stay. ``answer``: ``answers`` is right once the edit holds. Default: by aspect.
        path: Knowledge-graph triples that lead from the edit to the answer, if known.
        old: The answer before the edit, if it differs and is known.
        group: The test that this probe is part of; ``None`` for a test of its own.

    Raises:
        ValueError: On an unknown kind, an empty prompt or an empty answer.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...]
    expect: Expect = "unchanged"
    path: tuple[Triple, ...] = ()
    old: str | None = None
    group: Group | None = None

    def __post_init__(self) -> None:
        kinds = ", ".join(ASPECT_OF_KIND)
        require(self.kind in ASPECT_OF_KIND, f"kind {self.kind!r} is unknown; use one of {kinds}")
        require(bool(self.prompt.strip()), f"a {self.kind} probe has an empty prompt; give it text")
        require(
            bool(self.answers) and all(answer.strip() for answer in self.answers),
            f"the {self.kind} probe {self.prompt!r} has an empty answer; "
            "list at least one non-empty answer",
        )

    @property
    def aspect(self) -> str:
        """Aspect of the report that this probe is scored in."""
        return ASPECT_OF_KIND[self.kind]

    @classmethod
    def of(
        cls,
        kind: str,
        prompt: str,
        answers: str | Sequence[str],
        path: tuple[Triple, ...] = (),
        old: str | None = None,
        group: Group | None = None,
    ) -> "Probe":
        """Build a probe with the default expectation of its kind."""
        listed = (answers,) if isinstance(answers, str) else tuple(answers)
        expect = _EXPECT_OF_ASPECT[ASPECT_OF_KIND[kind]] if kind in ASPECT_OF_KIND else "unchanged"
        return cls(kind, prompt, listed, expect, path, old, group)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Probe":
        """Build a probe from :func:`dataclasses.asdict`, or from kind, prompt and answers."""
        group = record.get("group")
        probe = cls.of(
            record["kind"],
            record["prompt"],
            record["answers"],
            tuple(tuple(triple) for triple in record.get("path", ())),
            record.get("old"),
            None if group is None else Group.from_dict(group),
        )
        expect = record.get("expect")
        return probe if expect is None else replace(probe, expect=expect)
