"""Batching of a document stream into forward passes, deterministic so that a run can resume."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lightning_edit.exceptions import DataError

#: Documents per window; a window is sorted by length to batch documents of similar length.
_WINDOW_SIZE = 512


@dataclass(frozen=True)
class Position:
    """Position in a document stream, between two windows.

    Args:
        texts: Documents read.
        tokens: Tokens in the forward passes, of all processes.
        passes: Forward passes, of all processes.
        read: Chained hash of the documents read.
        seen: Chained hash of their tokens.
    """

    texts: int = 0
    tokens: int = 0
    passes: int = 0
    read: str = ""
    seen: str = ""

    def as_json(self) -> str:
        """Serialise the position as JSON, for :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Position":
        """Parse a position from the JSON of :meth:`as_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Window:
    """Window of consecutive documents, batched by length.

    Args:
        before: Position before the window.
        batches: Token ids; each batch is one forward pass, its longest document first.
        after: Position after the window.
    """

    before: Position
    batches: list[list[list[int]]]
    after: Position


def windows(
    tokenizer: Any,
    texts: Iterable[str],
    limit: int,
    max_tokens: int | None,
    batch_tokens: int,
    start: Position,
) -> Iterator[Window]:
    """Yield tokenised, batched windows of documents from a position on, in constant memory.

    Args:
        tokenizer: The model's tokenizer.
        texts: All documents; those before ``start`` are skipped.
        limit: Documents are truncated to this many tokens.
        max_tokens: Token budget over all windows.
        batch_tokens: Tokens of a forward pass, padding included.
        start: Position to start from.

    Raises:
        DataError: If the documents before ``start`` have changed.
    """
    rest, position = _skip(iter(texts), start), start
    while window := list(itertools.islice(rest, _WINDOW_SIZE)):
        documents = tokenizer(window, truncation=True, max_length=limit)["input_ids"]
        left = None if max_tokens is None else max_tokens - position.tokens
        used, ids, read, seen = 0, [], position.read, position.seen
        for text, tokens in zip(window, documents, strict=True):
            if left is not None and used >= left:
                break
            kept = tokens if left is None else tokens[: left - used]
            read, seen = chain_hash(read, text), chain_hash(seen, json.dumps(kept))
            used += len(kept)
            ids.append(kept)
        batches = list(_batches([one for one in ids if one], batch_tokens))
        after = Position(
            position.texts + len(ids),
            position.tokens + used,
            position.passes + len(batches),
            read,
            seen,
        )
        yield Window(position, batches, after)
        position = after
        if max_tokens is not None and position.tokens >= max_tokens:
            return


def chain_hash(before: str, text: str) -> str:
    """Return the chained SHA-256 of a previous hash and a text."""
    return hashlib.sha256(f"{before}|{text}".encode("utf-8", "surrogatepass")).hexdigest()


def changed_text_error(texts: int) -> DataError:
    """Return the ``DataError`` for a text that changed since an interrupted run.

    Args:
        texts: Number of documents that were compared.
    """
    return DataError(
        f"the first {texts:,} documents are not those of the interrupted pass; restore the "
        "text, or start over with --restart"
    )


def _skip(texts: Iterator[str], start: Position) -> Iterator[str]:
    read = ""
    for text in itertools.islice(texts, start.texts):
        read = chain_hash(read, text)
    if read != start.read:
        raise changed_text_error(start.texts)
    return texts


def _batches(documents: list[list[int]], batch_tokens: int) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for ids in sorted(documents, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch
