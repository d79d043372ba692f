"""Training texts and traced facts, read from JSONL. Nothing here imports torch."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightning_edit.exceptions import DataError
from lightning_edit.storage.jsonl import iterate_rows

T = TypeVar("T", "TrainingText", "TracedFact")


@dataclass(frozen=True)
class TrainingText:
    """One training example: running text, or a prompt and the answer that is learnt after it.

    Args:
        id: Its name, unique in the file.
        text: The text that is learnt: all of it, or the part after the prompt.
        prompt: What stands before it and is not learnt; ``None``: every token but the first is.
    """

    id: str
    text: str
    prompt: str | None = None

    @property
    def whole(self) -> str:
        """The example as one text."""
        return self.text if self.prompt is None else f"{self.prompt} {self.text}"


@dataclass(frozen=True)
class TracedFact:
    """An answer of the fine-tuned model whose causes are looked for among the training texts.

    Args:
        id: Its name, unique in the file.
        prompt: The prompt.
        answer: The answer in question, mostly a wrong one.
        correct: The answer that it should have been; the loss of the answer is then taken against
            that of this one. ``None``: alone.
        causes: Ids of the training texts that are known to teach the answer, for AUC and recall.
    """

    id: str
    prompt: str
    answer: str
    correct: str | None = None
    causes: tuple[str, ...] = ()

    @property
    def whole(self) -> str:
        """Prompt and answer as one text."""
        return f"{self.prompt} {self.answer}"


def read_texts(path: Path) -> list[TrainingText]:
    """Read training texts from JSONL: ``text``, or ``prompt`` and ``answer``; ``id`` if you like.

    Args:
        path: The file, one object a line.

    Raises:
        DataError: If there is none, a line lacks its text, or two have one id.
    """

    def parse(row: Mapping[str, Any], name: str, where: str) -> TrainingText:
        if "text" in row:
            return TrainingText(name, _text(row, "text", where))
        if "prompt" not in row:
            raise DataError(
                f'{where}: expected "text", or "prompt" and "answer", got {_keys(row)}; write the '
                "example as the model was trained on it"
            )
        return TrainingText(name, _text(row, "answer", where), _text(row, "prompt", where))

    return _read(path, parse)


def read_traced_facts(path: Path) -> list[TracedFact]:
    """Read facts from JSONL: ``prompt``, ``answer``, and ``correct``, ``causes``, ``id`` if known.

    Args:
        path: The file, one object a line.

    Raises:
        DataError: If there is none, a line lacks prompt or answer, or two have one id.
    """

    def parse(row: Mapping[str, Any], name: str, where: str) -> TracedFact:
        correct = None if row.get("correct") is None else _text(row, "correct", where)
        causes = row.get("causes") or []
        if not isinstance(causes, list) or not all(isinstance(one, str) for one in causes):
            raise DataError(
                f'{where}: expected "causes" as a list of ids of training texts, got {causes!r}; '
                "leave it out where they are not known"
            )
        answer = _text(row, "answer", where)
        if answer == correct:
            raise DataError(
                f'{where}: expected another "answer" than "correct", got {answer!r} for both; '
                'give the wrong answer as "answer", or leave "correct" out'
            )
        return TracedFact(name, _text(row, "prompt", where), answer, correct, tuple(causes))

    return _read(path, parse)


def check_causes(texts: Sequence[TrainingText], facts: Sequence[TracedFact]) -> None:
    """Check that every known cause is a training text, and that it can be missed.

    Args:
        texts: The training texts.
        facts: The facts.

    Raises:
        DataError: If one is not, or if a fact's causes are all the texts.
    """
    known = {text.id for text in texts}
    for fact in facts:
        if missing := [one for one in fact.causes if one not in known]:
            raise DataError(
                f'fact {fact.id!r}: its cause {missing[0]!r} is the "id" of no training text; '
                "give ids in both files"
            )
        if len(set(fact.causes)) == len(known):
            raise DataError(
                f"fact {fact.id!r}: expected training texts that are no causes of it, got none; "
                "add texts that do not teach it"
            )


def rows_hash(rows: Iterable[TrainingText | TracedFact]) -> str:
    """Hash training texts or facts, in their order.

    Args:
        rows: The texts or facts.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(asdict(row), ensure_ascii=False, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _read(path: Path, parse: Callable[[Mapping[str, Any], str, str], T]) -> list[T]:
    if not path.is_file():
        raise DataError(f"{path}: expected a JSONL file, got none; check the path")
    found: dict[str, T] = {}
    for number, row in iterate_rows(path):
        where = f"{path}, line {number}"
        name = str(row.get("id", f"line {number}"))
        if name in found:
            raise DataError(f'{where}: the id {name!r} is taken; give every line its own "id"')
        found[name] = parse(row, name, where)
    if not found:
        raise DataError(f"{path}: expected at least one line, got none; write one object a line")
    return list(found.values())


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f'{where}: expected a text that is not empty as "{key}", got {value!r}; write it, or '
            "leave the line out"
        )
    return value


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(f'"{key}"' for key in row) or "nothing"
