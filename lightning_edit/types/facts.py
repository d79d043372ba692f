"""Facts: triples of a knowledge graph, each with a prompt that asks for it.

Nothing here imports torch.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Fact:
    """One triple and how a model is asked for it.

    Args:
        subject: Name of the subject in the graph.
        relation: Name of the relation.
        object: Name of the object in the graph.
        prompt: Text that the object continues.
        answers: Accepted answers, the preferred one first.
        subject_text: The subject as it stands in the prompt; ``None``: its name.
    """

    subject: str
    relation: str
    object: str
    prompt: str
    answers: tuple[str, ...]
    subject_text: str | None = None

    @property
    def subject_end(self) -> int | None:
        """Offset just after the subject in the prompt; ``None`` where it does not stand there."""
        text = self.subject_text or self.subject
        start = self.prompt.find(text)
        return None if start < 0 else start + len(text)

    def to_row(self) -> dict[str, Any]:
        """Return what is written about a fact: its triple and its prompt."""
        row = asdict(self)
        return {name: row[name] for name in ("subject", "relation", "object", "prompt")}
