"""Facts: knowledge-graph triples, each with a prompt and its accepted answers.

Nothing here imports torch.
"""

from dataclasses import asdict, dataclass
from typing import Any

from lightning_edit.types.subjects import locate_subject


@dataclass(frozen=True)
class Fact:
    """Knowledge-graph triple with a prompt for it.

    Args:
        subject: Name of the subject in the graph.
        relation: Name of the relation.
        object: Name of the object in the graph.
        prompt: Text that ends where the object begins.
        answers: Accepted answers, the preferred one first.
        subject_text: The subject as spelled in the prompt; ``None``: its name.
    """

    subject: str
    relation: str
    object: str
    prompt: str
    answers: tuple[str, ...]
    subject_text: str | None = None

    @property
    def subject_end(self) -> int | None:
        """Character offset of the subject's end in the prompt; ``None`` if it is not in there."""
        text = self.subject_text or self.subject
        start = locate_subject(self.prompt, text)
        return None if start is None else start + len(text)

    def to_row(self) -> dict[str, Any]:
        """Return the triple and the prompt, as a row for JSON."""
        row = asdict(self)
        return {name: row[name] for name in ("subject", "relation", "object", "prompt")}
