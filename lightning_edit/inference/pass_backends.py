"""Backends of the answer pass: plain rows, padded rows, prefix tree, encoder-decoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from lightning_edit.functional.padding import pad, prediction_places
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.answer_pass import ForwardPass, Ids, PassBackend, ReadRow
from lightning_edit.inference.answer_rows import start_tokens
from lightning_edit.inference.encoded_prompts import EncodedPrompts
from lightning_edit.inference.prefix_tree import TokenTree, prefix_batches, tree_attention

#: Maximum number of tokens in a prefix tree without a long prefix. Every token attends over all of
#: them, so a larger tree costs more than it saves.
_MAX_TREE_TOKENS = 256


@dataclass(frozen=True)
class PlainRows:
    """Padded rows of similar length, one per text; nothing is shared between texts."""

    shares_prefixes: bool = False

    def passes(self, model: Any, rows: Sequence[ReadRow], batch_size: int) -> Iterator[ForwardPass]:
        """Yield right-padded passes; see ``PassBackend``.

        Args:
            model: A decoder-only model.
            rows: The rows.
            batch_size: Most rows in a pass.
        """
        texts = [row.context + row.fed for row in rows]
        for numbers in length_sorted([len(text) for text in texts], batch_size):
            ids, mask = pad([texts[number] for number in numbers])
            places = prediction_places(
                [len(rows[number].context) for number in numbers],
                [len(rows[number].fed) + 1 for number in numbers],
            )
            inputs = {"input_ids": ids, "attention_mask": mask}
            ends = [len(rows[number].context) - 1 for number in numbers]
            yield ForwardPass(inputs, numbers, places, prompt_ends=ends)


@dataclass(frozen=True)
class PaddedRows:
    """Padded rows of similar length; a text that is the beginning of another is read in it."""

    shares_prefixes: bool = True

    def passes(self, model: Any, rows: Sequence[ReadRow], batch_size: int) -> Iterator[ForwardPass]:
        """Yield right-padded passes; see ``PassBackend``.

        Args:
            model: A decoder-only model.
            rows: The rows.
            batch_size: Most padded rows in a pass.
        """
        texts = [row.context + row.fed for row in rows]
        groups = _merge_prefixes(texts)
        hosts = list(groups)
        for lines in length_sorted([len(texts[host]) for host in hosts], batch_size):
            batch = [hosts[line] for line in lines]
            read = [(line, row) for line, host in enumerate(batch) for row in groups[host]]
            ids, mask = pad([texts[host] for host in batch])
            at, positions = prediction_places(
                [len(rows[row].context) for _, row in read],
                [len(rows[row].fed) + 1 for _, row in read],
            )
            places = torch.tensor([line for line, _ in read])[at], positions
            inputs = {"input_ids": ids, "attention_mask": mask}
            yield ForwardPass(inputs, [row for _, row in read], places)


@dataclass(frozen=True)
class PrefixTree:
    """Prefix trees under a tree attention mask: tokens that texts share are computed once.

    Args:
        long_prefixes: Whether a tree is larger where all of its texts share a long prefix.
    """

    long_prefixes: bool = False
    shares_prefixes: bool = True

    def passes(self, model: Any, rows: Sequence[ReadRow], batch_size: int) -> Iterator[ForwardPass]:
        """Yield passes of one tree; see ``PassBackend``.

        Args:
            model: A decoder-only model.
            rows: The rows.
            batch_size: Most texts in a tree.
        """
        texts = [row.context + row.fed for row in rows]
        for numbers in prefix_batches(texts, batch_size, _MAX_TREE_TOKENS, self.long_prefixes):
            tree = TokenTree.of([texts[number] for number in numbers])
            found = [
                place
                for number, path in zip(numbers, tree.places, strict=True)
                for place in path[len(rows[number].context) - 1 :]
            ]
            places = torch.zeros(len(found), dtype=torch.long), torch.tensor(found)
            inputs = {"input_ids": tree.ids, "position_ids": tree.positions}
            yield ForwardPass(inputs, numbers, places, partial(tree_attention, tree=tree))


@dataclass(frozen=True)
class EncoderDecoder:
    """Two stacks: prompts go to the encoder, answers after the start token to the decoder.

    Args:
        shares_prefixes: Whether the encoder reads a prompt once for all its answers. ``False``: a
            row of the encoder per answer, for edits that decide once a prompt and for models with
            hooks.
        encoded: Prompts that are shared with other calls; ``None``: with none.
    """

    shares_prefixes: bool = False
    encoded: EncodedPrompts | None = None

    def passes(self, model: Any, rows: Sequence[ReadRow], batch_size: int) -> Iterator[ForwardPass]:
        """Yield padded passes; see ``PassBackend``.

        Args:
            model: An encoder-decoder model.
            rows: The rows.
            batch_size: Most rows in a pass.
        """
        start = start_tokens(model)
        encoded = self.encoded
        if encoded is None and self.shares_prefixes:
            encoded = EncodedPrompts(model, (row.context for row in rows), batch_size)
        lengths = [len(row.context) + len(row.fed) for row in rows]
        for numbers in length_sorted(lengths, batch_size):
            batch = [rows[number] for number in numbers]
            contexts = [row.context for row in batch]
            decoder_ids, decoder_mask = pad([(*start, *row.fed) for row in batch])
            inputs = {"decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask}
            sizes = [len(row.fed) + 1 for row in batch]
            places = prediction_places([len(start)] * len(batch), sizes)
            if encoded is not None:
                read = partial(encoded.inputs, contexts)
                yield ForwardPass(inputs, numbers, places, read_prompts=read)
                continue
            ids, mask = pad(contexts)
            inputs |= {"input_ids": ids, "attention_mask": mask}
            ends = [len(context) - 1 for context in contexts]
            yield ForwardPass(inputs, numbers, places, prompt_ends=ends)


def passes_apart(
    model: Any, rows: Sequence[ReadRow], batch_size: int, backend: PassBackend
) -> Iterator[ForwardPass]:
    """Yield passes in which nothing of one row reaches another: rows of one length, unpadded.

    A masked token has weight zero in attention, and zero times NaN is NaN: a row that shares a pass
    with a broken one, or with broken padding, can be NaN although it is sound by itself.

    Args:
        model: The language model.
        rows: The rows.
        batch_size: Most rows in a pass.
        backend: What laid the rows out before; one of another kind gets them one by one.
    """
    apart: PassBackend | None = None
    if isinstance(backend, EncoderDecoder):
        apart = EncoderDecoder()
    elif isinstance(backend, (PlainRows, PaddedRows, PrefixTree)):
        apart = PlainRows()
    parts: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        size = (number,) if apart is None else (len(row.context), len(row.fed))
        parts.setdefault(size, []).append(number)
    for numbers in parts.values():
        listed = [rows[number] for number in numbers]
        for one in (apart or backend).passes(model, listed, batch_size):
            yield replace(one, rows=[numbers[row] for row in one.rows])


def _merge_prefixes(texts: Sequence[Ids]) -> dict[int, list[int]]:
    """Group texts that are the beginning of another one, since attention is causal.

    Returns:
        By the longest text of a group, all texts that are read in it.
    """
    groups: dict[int, list[int]] = {}
    host: int | None = None
    # Sorted by tokens, a text comes right before those that extend it.
    for number in sorted(range(len(texts)), key=lambda number: texts[number], reverse=True):
        if host is None or texts[host][: len(texts[number])] != texts[number]:
            host = number
        groups.setdefault(host, []).append(number)
    return groups
