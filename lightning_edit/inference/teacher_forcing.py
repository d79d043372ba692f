"""Teacher forcing: argmax token and loss at each token of given answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.functional.padding import pad, prediction_places
from lightning_edit.functional.scores import token_scores
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.generation import Ids
from lightning_edit.inference.hooks import select_head_positions
from lightning_edit.inference.packed.backend import NotPackableError
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.prefix_tree import TokenTree, prefix_batches, tree_attention

AnswerRow = tuple[Ids, Ids]
"""Token ids of a prompt (all that precedes the answer) and of its answer."""
Places = tuple[Tensor, Tensor]
"""Row numbers and positions at which logits are read."""
#: Maximum number of tokens in a prefix tree. Every token attends over all of them, so a larger tree
#: costs more than it saves.
_MAX_TREE_TOKENS = 256


@dataclass(frozen=True)
class ForcedAnswer:
    """Argmax tokens and losses along an answer; ``chosen`` adds argmax tokens read beyond it."""

    best: Ids
    nlls: tuple[float, ...]
    chosen: Ids


@dataclass(frozen=True)
class _ForwardPass:
    """One forward pass: model arguments, scored rows and read positions.

    Args:
        inputs: Arguments of the model.
        read: Rows that are scored in it.
        places: The positions read, row by row.
        tree: The tokens as a prefix tree, in that layout.
    """

    inputs: dict[str, Tensor]
    read: list[AnswerRow]
    places: Places
    tree: TokenTree | None = None


class TeacherForcing:
    """Teacher-forced scoring of given answers with one language model.

    Args:
        model: A Hugging Face language model in evaluation mode, decoder-only or encoder-decoder.
        batch_size: Rows per forward pass.
        layout: Prefix tree, which computes shared prefixes once, or padded rows of similar length;
            ``None``: chosen here from the model's present state.
    """

    def __init__(self, model: nn.Module, batch_size: int, layout: PassLayout | None = None) -> None:
        self.model: Any = model
        self.batch_size = batch_size
        self.layout = PassLayout.choose(model) if layout is None else layout

    def __call__(
        self, rows: Iterable[AnswerRow], ahead: Mapping[AnswerRow, Ids]
    ) -> dict[AnswerRow, ForcedAnswer]:
        """Return argmax tokens and losses along each row's teacher-forced answer.

        Args:
            rows: Prompts and answers, each once.
            ahead: Guessed next tokens of rows that are read beyond their answer too.

        Raises:
            PassLayoutError: If the model can no longer run in the layout that was chosen for it.
        """
        rows = sorted(rows)
        if self.model.config.is_encoder_decoder:
            return self._run(self._encoder_decoder_passes(rows), ahead)
        if self.layout.kind == "padded":
            return self._run(self._padded_passes(rows, ahead), ahead)
        self.layout.require(self.model)
        try:
            return self._run(self._tree_passes(rows, ahead), ahead)
        except NotPackableError:
            # Only a run shows it: a window shorter than these texts, a bias, a soft cap. The same
            # rows show it again in any process.
            return self._run(self._padded_passes(rows, ahead), ahead)

    def _run(
        self, passes: Iterator[_ForwardPass], ahead: Mapping[AnswerRow, Ids]
    ) -> dict[AnswerRow, ForcedAnswer]:
        outcome = {}
        for one in passes:
            # A model sharded over devices expects its ids on the embedding's device.
            device = self.model.get_input_embeddings().weight.device
            inputs = {name: value.to(device) for name, value in one.inputs.items()}
            index = (one.places[0].to(device), one.places[1].to(device))
            with select_head_positions(self.model, index):
                if one.tree is None:
                    logits = self.model(**inputs, use_cache=False).logits
                else:
                    with tree_attention(self.model, one.tree):
                        logits = self.model(**inputs, use_cache=False).logits
            # After an answer there is no target; token 0 is a placeholder whose loss is dropped.
            tokens = [(*row[1], *ahead[row], 0) if row in ahead else row[1] for row in one.read]
            targets = torch.tensor([token for answer in tokens for token in answer])
            nll, best = token_scores(logits.squeeze(1), targets.to(logits.device))
            all_nll, all_best = iter(nll.tolist()), iter(best.tolist())
            for row in one.read:
                size = _num_read(row, ahead)
                chosen, nlls = tuple(islice(all_best, size)), tuple(islice(all_nll, size))
                outcome[row] = ForcedAnswer(chosen[: len(row[1])], nlls[: len(row[1])], chosen)
        return outcome

    def _tree_passes(
        self, rows: Sequence[AnswerRow], ahead: Mapping[AnswerRow, Ids]
    ) -> Iterator[_ForwardPass]:
        """Yield passes over prefix trees of prompts and answers."""
        sequences = [_input_ids(row, ahead) for row in rows]
        for numbers in prefix_batches(sequences, self.batch_size, _MAX_TREE_TOKENS):
            tree = TokenTree.of([sequences[number] for number in numbers])
            read = [rows[number] for number in numbers]
            found = [
                place
                for row, path in zip(read, tree.places, strict=True)
                for place in path[len(row[0]) - 1 :][: _num_read(row, ahead)]
            ]
            places = torch.zeros(len(found), dtype=torch.long), torch.tensor(found)
            inputs = {"input_ids": tree.ids, "position_ids": tree.positions}
            yield _ForwardPass(inputs, read, places, tree)

    def _padded_passes(
        self, rows: Sequence[AnswerRow], ahead: Mapping[AnswerRow, Ids]
    ) -> Iterator[_ForwardPass]:
        """Yield right-padded passes, prompt and answer in one row; fits every model family."""
        groups = _merge_prefixes(rows, ahead)
        hosts = list(groups)
        lengths = [len(_input_ids(host, ahead)) for host in hosts]
        for numbers in length_sorted(lengths, self.batch_size):
            batch = [hosts[number] for number in numbers]
            read = [(line, row) for line, host in enumerate(batch) for row in groups[host]]
            ids, mask = pad([_input_ids(row, ahead) for row in batch])
            lines, positions = prediction_places(
                [len(context) for _, (context, _) in read],
                [_num_read(row, ahead) for _, row in read],
            )
            places = torch.tensor([line for line, _ in read])[lines], positions
            inputs = {"input_ids": ids, "attention_mask": mask}
            yield _ForwardPass(inputs, [row for _, row in read], places)

    def _encoder_decoder_passes(self, rows: Sequence[AnswerRow]) -> Iterator[_ForwardPass]:
        """Yield encoder-decoder passes: encoded prompts, answers shifted right after the start."""
        settings = self.model.generation_config
        start = [self.model.config.decoder_start_token_id]
        if settings.forced_bos_token_id is not None:
            start.append(settings.forced_bos_token_id)
        lengths = [len(context) + len(answer) for context, answer in rows]
        for numbers in length_sorted(lengths, self.batch_size):
            batch = [rows[number] for number in numbers]
            ids, mask = pad([context for context, _ in batch])
            decoder_ids, decoder_mask = pad([(*start, *answer[:-1]) for _, answer in batch])
            inputs = {
                "input_ids": ids,
                "attention_mask": mask,
                "decoder_input_ids": decoder_ids,
                "decoder_attention_mask": decoder_mask,
            }
            sizes = [len(answer) for _, answer in batch]
            yield _ForwardPass(inputs, batch, prediction_places([len(start)] * len(batch), sizes))


def _input_ids(row: AnswerRow, ahead: Mapping[AnswerRow, Ids]) -> Ids:
    """Return a decoder's input ids; with the answer's last token only to read beyond it."""
    return (*row[0], *row[1], *ahead[row]) if row in ahead else (*row[0], *row[1][:-1])


def _num_read(row: AnswerRow, ahead: Mapping[AnswerRow, Ids]) -> int:
    """Return the number of positions at which a row's logits are read."""
    return len(row[1]) + (1 + len(ahead[row]) if row in ahead else 0)


def _merge_prefixes(
    rows: Iterable[AnswerRow], ahead: Mapping[AnswerRow, Ids]
) -> dict[AnswerRow, list[AnswerRow]]:
    """Group rows whose input is a prefix of another's, since attention is causal.

    Returns:
        By the longest row of a group, all rows that are scored in it.
    """
    groups: dict[AnswerRow, list[AnswerRow]] = {}
    host: AnswerRow | None = None
    # Sorted by tokens, a row comes right before those that extend it.
    inputs = {row: _input_ids(row, ahead) for row in rows}
    for row in sorted(rows, key=lambda row: inputs[row], reverse=True):
        if host is None or inputs[host][: len(inputs[row])] != inputs[row]:
            host = row
        groups.setdefault(host, []).append(row)
    return groups
