"""Given answers through a language model: its choice and the loss at each of their tokens."""

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
from lightning_edit.inference.prefix_tree import TokenTree, attending_tree, batches

AnswerRow = tuple[Ids, Ids]
"""What the model reads before an answer, and the answer."""
Places = tuple[Tensor, Tensor]
"""AnswerRow numbers and positions at which the model's choice is read."""
#: Most tokens of a tree. Its attention is one over all of them, which costs more than it saves
#: where there are many.
_TREE = 256


@dataclass(frozen=True)
class ForcedAnswer:
    """The model's choices along an answer, their losses, and the choices with the one behind it."""

    best: Ids
    nlls: tuple[float, ...]
    chosen: Ids


@dataclass(frozen=True)
class _Pass:
    """What goes through the model together.

    Args:
        inputs: Its arguments.
        read: The rows that are read in it.
        places: Where, row by row.
        tree: The tokens, where they are a tree.
    """

    inputs: dict[str, Tensor]
    read: list[AnswerRow]
    places: Places
    tree: TokenTree | None = None


class TeacherForcing:
    """Runs given answers through one language model.

    Args:
        model: A Hugging Face language model in evaluation mode, decoder-only or encoder-decoder.
        batch_size: Rows that go through the model together.
        layout: Whether what rows begin with is computed once, in a prefix tree, or rows of like
            length are padded; ``None``: chosen here, from the model as it is now.
    """

    def __init__(self, model: nn.Module, batch_size: int, layout: PassLayout | None = None) -> None:
        self.model: Any = model
        self.batch_size = batch_size
        self.layout = PassLayout.choose(model) if layout is None else layout

    def __call__(
        self, rows: Iterable[AnswerRow], ahead: Mapping[AnswerRow, Ids]
    ) -> dict[AnswerRow, ForcedAnswer]:
        """Return the model's choices along each row's answer.

        Args:
            rows: Prompts and answers, each once.
            ahead: Of rows that are read behind their answer too: what is guessed to follow.

        Raises:
            PassLayoutError: If the model can no longer run in the layout that was chosen for it.
        """
        rows = sorted(rows)
        if self.model.config.is_encoder_decoder:
            return self._run(self._pairs(rows), ahead)
        if self.layout.kind == "padded":
            return self._run(self._padded(rows, ahead), ahead)
        self.layout.require(self.model)
        try:
            return self._run(self._trees(rows, ahead), ahead)
        except NotPackableError:
            # Found out by running: a window shorter than these texts, a bias, a soft cap. The same
            # rows find it again in any process.
            return self._run(self._padded(rows, ahead), ahead)

    def _run(
        self, passes: Iterator[_Pass], ahead: Mapping[AnswerRow, Ids]
    ) -> dict[AnswerRow, ForcedAnswer]:
        outcome = {}
        for one in passes:
            # A model that is spread over devices takes its ids where the embedding lies.
            device = self.model.get_input_embeddings().weight.device
            inputs = {name: value.to(device) for name, value in one.inputs.items()}
            index = (one.places[0].to(device), one.places[1].to(device))
            with select_head_positions(self.model, index):
                if one.tree is None:
                    logits = self.model(**inputs, use_cache=False).logits
                else:
                    with attending_tree(self.model, one.tree):
                        logits = self.model(**inputs, use_cache=False).logits
            # Behind an answer no token is expected; the loss that 0 would have is not kept.
            tokens = [(*row[1], *ahead[row], 0) if row in ahead else row[1] for row in one.read]
            targets = torch.tensor([token for answer in tokens for token in answer])
            nll, best = token_scores(logits.squeeze(1), targets.to(logits.device))
            all_nll, all_best = iter(nll.tolist()), iter(best.tolist())
            for row in one.read:
                size = _read(row, ahead)
                chosen, nlls = tuple(islice(all_best, size)), tuple(islice(all_nll, size))
                outcome[row] = ForcedAnswer(chosen[: len(row[1])], nlls[: len(row[1])], chosen)
        return outcome

    def _trees(self, rows: Sequence[AnswerRow], ahead: Mapping[AnswerRow, Ids]) -> Iterator[_Pass]:
        """Prompts and answers as trees of tokens."""
        sequences = [_input(row, ahead) for row in rows]
        for numbers in batches(sequences, self.batch_size, _TREE):
            tree = TokenTree.of([sequences[number] for number in numbers])
            read = [rows[number] for number in numbers]
            found = [
                place
                for row, path in zip(read, tree.places, strict=True)
                for place in path[len(row[0]) - 1 :][: _read(row, ahead)]
            ]
            places = torch.zeros(len(found), dtype=torch.long), torch.tensor(found)
            inputs = {"input_ids": tree.ids, "position_ids": tree.positions}
            yield _Pass(inputs, read, places, tree)

    def _padded(self, rows: Sequence[AnswerRow], ahead: Mapping[AnswerRow, Ids]) -> Iterator[_Pass]:
        """Prompt and answer in one row; right padding is right for every family of models."""
        groups = _merged(rows, ahead)
        hosts = list(groups)
        lengths = [len(_input(host, ahead)) for host in hosts]
        for numbers in length_sorted(lengths, self.batch_size):
            batch = [hosts[number] for number in numbers]
            read = [(line, row) for line, host in enumerate(batch) for row in groups[host]]
            ids, mask = pad([_input(row, ahead) for row in batch])
            lines, positions = prediction_places(
                [len(context) for _, (context, _) in read],
                [_read(row, ahead) for _, row in read],
            )
            places = torch.tensor([line for line, _ in read])[lines], positions
            inputs = {"input_ids": ids, "attention_mask": mask}
            yield _Pass(inputs, [row for _, row in read], places)

    def _pairs(self, rows: Sequence[AnswerRow]) -> Iterator[_Pass]:
        """Prompts for the encoder; the decoder gets each answer, shifted behind its start token."""
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
            yield _Pass(inputs, batch, prediction_places([len(start)] * len(batch), sizes))


def _input(row: AnswerRow, ahead: Mapping[AnswerRow, Ids]) -> Ids:
    """Return the tokens a decoder reads; an answer's last one only to look behind it."""
    return (*row[0], *row[1], *ahead[row]) if row in ahead else (*row[0], *row[1][:-1])


def _read(row: AnswerRow, ahead: Mapping[AnswerRow, Ids]) -> int:
    """Return at how many positions a row is read."""
    return len(row[1]) + (1 + len(ahead[row]) if row in ahead else 0)


def _merged(
    rows: Iterable[AnswerRow], ahead: Mapping[AnswerRow, Ids]
) -> dict[AnswerRow, list[AnswerRow]]:
    """Group rows whose tokens are the beginning of another's: attention looks back only.

    Returns:
        By the longest row of a group, all rows that are read in it.
    """
    groups: dict[AnswerRow, list[AnswerRow]] = {}
    host: AnswerRow | None = None
    # In the order of their tokens a row stands right before those that go on from it.
    inputs = {row: _input(row, ahead) for row in rows}
    for row in sorted(rows, key=lambda row: inputs[row], reverse=True):
        if host is None or inputs[host][: len(inputs[row])] != inputs[row]:
            host = row
        groups.setdefault(host, []).append(row)
    return groups
