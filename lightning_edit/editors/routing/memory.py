"""Memory of edits as text, and the edit that a question falls under: decided once a question."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.routing.scope_classifier import ScopeClassifier, StoredEdit
from lightning_edit.edits.delta import Delta
from lightning_edit.functional.scope import pair_log_scores, route
from lightning_edit.models.prompt_encoder import Ids
from lightning_edit.types import EditRequest

#: Decisions and vectors that are kept.
_KEPT = 1 << 16
#: Most values of a table of distances (questions × edits × width).
_VALUES = 1 << 24
_PLACES = "target_start"


class Choice(NamedTuple):
    """The edit that a question is most similar to.

    Args:
        edit: The edit.
        score: Its scope score, 0 to 1.
        inside: Whether the question is in its scope.
    """

    edit: StoredEdit
    score: float
    inside: bool


def stored_delta(requests: Sequence[EditRequest]) -> Delta:
    """Return edits as a delta: their texts, and where in each the new answer begins.

    Args:
        requests: The edits.
    """
    edits = {request.id: StoredEdit(request.prompt, request.target) for request in requests}
    texts = {name: f"{edit.prompt} {edit.target}" for name, edit in edits.items()}
    places = torch.tensor([len(edit.prompt) + 1 for edit in edits.values()])
    return Delta(tuple(edits), state={_PLACES: places}, prompts=texts)


def stored_edits(delta: Delta) -> list[StoredEdit]:
    """Return the edits of :func:`stored_delta`.

    Args:
        delta: The delta.
    """
    places = delta.state[_PLACES].tolist()
    return [
        StoredEdit(text[: place - 1], text[place:])
        for text, place in zip(delta.prompts.values(), places, strict=True)
    ]


class ScopeMemory:
    """Runtime of an editor that routes: the edits in force, and the scope of each question.

    A question's decision is taken once and kept until the memory changes, so forced and generated
    answers, alone or in a batch, follow the same one. Edits and questions are encoded once.

    Args:
        classifier: The scope classifier.
        batch_size: Texts per pass of its encoder.
    """

    def __init__(self, classifier: ScopeClassifier, batch_size: int = 64) -> None:
        self.classifier = classifier
        self.batch_size = batch_size
        self._in_force: Sequence[Delta] = ()
        self._edits: tuple[StoredEdit, ...] | None = ()
        self._decided: dict[str, Choice] = {}
        self._vectors: dict[Ids, Tensor] = {}

    def install(self, in_force: Sequence[Delta]) -> None:
        """Take over the edits in force; they are read when a question is asked.

        Args:
            in_force: Deltas of :func:`stored_delta`.
        """
        self._in_force, self._edits = in_force, None
        self._decided.clear()

    def forget_vectors(self) -> None:
        """Forget what was computed with the classifier, whose parameters have changed."""
        self._vectors.clear()
        self._decided.clear()

    @property
    def edits(self) -> tuple[StoredEdit, ...]:
        """The edits in force, in the order of their commits; of one prompt the latest only."""
        if self._edits is None:
            stored = (one for delta in self._in_force for one in stored_edits(delta))
            self._edits = tuple({one.prompt: one for one in stored}.values())
        return self._edits

    @torch.no_grad()
    def choose(self, questions: Sequence[str]) -> dict[str, Choice]:
        """Return the edit that each question is most similar to.

        Args:
            questions: The questions; the memory must not be empty.
        """
        if len(self._decided) + len(questions) > _KEPT:
            self._decided.clear()
        new = [text for text in dict.fromkeys(questions) if text not in self._decided]
        edits = self.edits
        width = int(self.classifier.network.config.hidden_size)
        step = max(1, _VALUES // (len(edits) * width))
        for start in range(0, len(new), step):
            part = new[start : start + step]
            found = route(self._log_scores(part, edits))
            for text, score, edit, inside in zip(
                part, found.score.tolist(), found.edit.tolist(), found.inside.tolist(), strict=True
            ):
                self._decided[text] = Choice(edits[edit], score, inside)
        return {text: self._decided[text] for text in questions}

    def _log_scores(
        self, questions: Sequence[str], edits: Sequence[StoredEdit]
    ) -> Float[Tensor, "q m"]:
        text = self.classifier.text
        if self.classifier.kind == "cross-attention":
            rows = [text.pair(edit, question) for question in questions for edit in edits]
            logits = torch.cat(
                [self.classifier.pair_logits(part) for part in _parts(rows, self.batch_size)]
            )
            return pair_log_scores(logits.view(len(questions), len(edits), 2))
        sides = [text.question(one) for one in questions], [text.edit(one) for one in edits]
        return self.classifier.compare(*(self._encoded(side) for side in sides))

    def _encoded(self, rows: Sequence[Ids]) -> Float[Tensor, "n d"]:
        if len(self._vectors) + len(rows) > _KEPT:
            self._vectors.clear()
        new = [row for row in dict.fromkeys(rows) if row not in self._vectors]
        for part in _parts(sorted(new, key=lambda row: (len(row), row)), self.batch_size):
            self._vectors |= zip(part, self.classifier.vectors(part), strict=True)
        return torch.stack([self._vectors[row] for row in rows])


def _parts(rows: Sequence[Ids], size: int) -> list[Sequence[Ids]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
