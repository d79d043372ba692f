"""New facts of the edits in force: what editors by text put in front of a prompt."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from operator import attrgetter

from lightning_edit.edits.delta import Delta
from lightning_edit.inference.retrieval import MakeIndex, TextIndex
from lightning_edit.models.prompt_format import render_plain
from lightning_edit.types import EditRequest


@dataclass(frozen=True)
class Fact:
    """A new fact, as text.

    Args:
        prompt: The edit's prompt.
        target: Its answer.
        sentence: Both, joined as in running text.
    """

    prompt: str
    target: str
    sentence: str

    @classmethod
    def of(cls, request: EditRequest) -> "Fact":
        """Return the fact of a request, without white space around it.

        Args:
            request: The request.
        """
        text = render_plain(request.prompt, request.target, request.separator).text
        return cls(request.prompt.strip(), request.target.strip(), text.strip())

    def to_text(self) -> str:
        """Serialise the fact, for ``Delta.prompts``."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> "Fact":
        """Return the fact of :meth:`to_text`."""
        return _parsed(text)


@lru_cache(maxsize=1 << 16)
def _parsed(text: str) -> Fact:
    return Fact(**json.loads(text))


class FactMemory:
    """Facts of the edits in force, and the index that searches them: the runtime of a text editor.

    A later edit of the same prompt takes the place of an earlier one, which comes back when the
    later one is undone. Everything follows from the list of edits in force, so an undo in the
    middle equals never having edited.

    Args:
        make_index: Makes the index.
        key: Text by which a fact is found.
    """

    def __init__(
        self, make_index: MakeIndex, key: Callable[[Fact], str] = attrgetter("prompt")
    ) -> None:
        self.facts: tuple[Fact, ...] = ()
        self._make_index = make_index
        self._key = key
        self._index: TextIndex | None = None
        self._listeners: list[Callable[[], None]] = []

    def install(self, in_force: Sequence[Delta]) -> None:
        """Take the facts of the edits in force, and forget all others.

        Args:
            in_force: Deltas, in the order of their commits.
        """
        newest: dict[str, Fact] = {}
        for delta in in_force:
            for text in delta.prompts.values():
                fact = Fact.from_text(text)
                same = " ".join(fact.prompt.split())
                newest.pop(same, None)
                newest[same] = fact
        self.facts = tuple(newest.values())
        self._index = None
        for forget in self._listeners:
            forget()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call a function whenever the facts may have changed.

        Args:
            listener: The function.
        """
        self._listeners.append(listener)

    def nearest(self, query: str, k: int, least: float | None = None) -> list[Fact]:
        """Return the facts nearest to a query, the nearest one first; of equals the newest.

        Args:
            query: Mostly a prompt.
            k: Number of facts at most.
            least: Lowest score; ``None``: any.
        """
        if not self.facts:
            return []
        if self._index is None:
            self._index = self._make_index([self._key(fact) for fact in self.facts])
        hits = self._index.nearest(query, k, newest_first=True)
        return [self.facts[hit.place] for hit in hits if least is None or hit.score >= least]
