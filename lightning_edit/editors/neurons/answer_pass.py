"""Answer logits as a function of branches beside feed-forward networks, for training them.

Beside the last block's network everything but the branch is constant: what lies behind it runs at
the positions that predict answer tokens only (:mod:`~lightning_edit.inference.suffix`). Branches at
lower blocks need the whole model at every step. With two stacks branches stand in the decoder: the
encoder runs once, and the decoder at every step, over the few tokens of the answers.

Axis names: ``a`` -- answer tokens of all rows, row after row; ``t`` -- tokens; ``d`` -- hidden
width; ``v`` -- vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.editors.neurons.beside_ffn import Branch, beside, ffn_input, total
from lightning_edit.functional.padding import pad
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.answer_pass import wide
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.inference.hidden_states import read_last
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.module_adapter import attached
from lightning_edit.inference.suffix.build import build_suffix_forward
from lightning_edit.inference.suffix.forward import SuffixForward
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.prompt_encoder import Ids
from lightning_edit.models.view import ModelView


class AnswerPass(ABC):
    """Rows of prompts and answers, and their logits with branches beside networks.

    Attributes:
        targets: The answer tokens.
    """

    targets: Int[Tensor, " a"]

    @abstractmethod
    def logits(self, branches: Mapping[int, Branch]) -> Float[Tensor, "a v"]:
        """Return the logits that predict the answer tokens, in at least float32.

        Args:
            branches: Branches by block, on top of those in force; gradients flow to them.
        """


def answer_pass(
    view: ModelView,
    rows: Sequence[AnswerRow],
    blocks: Sequence[int],
    in_force: Mapping[int, Branch],
) -> AnswerPass:
    """Return the answer pass of rows, the fast one where branches stand beside the last block's.

    Args:
        view: The language model's structure.
        rows: Token ids of prompts and answers, none of them empty.
        blocks: Blocks that will have branches.
        in_force: Branches that are on the model.
    """
    if list(blocks) == [view.num_blocks - 1] and not view.is_encoder_decoder:
        return LastBlockPass.of(view, rows)
    return WholePass.of(view, rows, in_force)


@dataclass(frozen=True)
class LastBlockPass(AnswerPass):
    """Answer pass of branches beside the last block's network.

    Args:
        hidden: Input of the network where an answer token is predicted.
        suffix: What lies behind the network, at the same positions.
        targets: The answer tokens.
        block: Number of the block.
    """

    hidden: Float[Tensor, "a d"]
    suffix: SuffixForward
    targets: Int[Tensor, " a"]
    block: int

    @classmethod
    def of(cls, view: ModelView, rows: Sequence[AnswerRow]) -> "LastBlockPass":
        """Read the constants of rows.

        Args:
            view: The language model's structure.
            rows: Token ids of prompts and answers.
        """
        texts, targets = _texts(rows)
        block = view.num_blocks - 1
        hidden = read_inputs(view, rows, block)
        suffix = build_suffix_forward(view, texts, block, "mlp")
        return cls(hidden, suffix, torch.tensor(targets, device=hidden.device), block)

    def logits(self, branches: Mapping[int, Branch]) -> Float[Tensor, "a v"]:
        """Return the logits that predict the answer tokens; see :class:`AnswerPass`.

        Args:
            branches: The branch of the last block.
        """
        added = branches[self.block](self.hidden)
        every = torch.arange(len(self.targets), device=self.suffix.starts.device)
        return self.suffix.logits(added.to(every.device), every, torch.zeros_like(every))

    def select(self, places: Int[Tensor, " k"]) -> "LastBlockPass":
        """Return the pass of some answer tokens only.

        Args:
            places: Their indices.
        """
        suffix = self.suffix.select(places)
        return LastBlockPass(self.hidden[places], suffix, self.targets[places], self.block)


@dataclass(frozen=True)
class WholePass(AnswerPass):
    """Answer pass of branches anywhere: the whole model runs, of two stacks the decoder.

    Args:
        view: The language model's structure.
        rows: Prompts and answers.
        in_force: Branches that are on the model.
        targets: The answer tokens.
    """

    view: ModelView
    rows: AnswerRows
    in_force: Mapping[int, Branch]
    targets: Int[Tensor, " a"]

    @classmethod
    def of(
        cls, view: ModelView, rows: Sequence[AnswerRow], in_force: Mapping[int, Branch]
    ) -> "WholePass":
        """Lay out rows.

        Args:
            view: The language model's structure.
            rows: Token ids of prompts and answers.
            in_force: Branches that are on the model.
        """
        padded = AnswerRows.of(view.model, rows)
        with evaluating(view.model):
            padded = padded.encode_prompts(view.model)
        return cls(view, padded, in_force, padded.targets)

    def logits(self, branches: Mapping[int, Branch]) -> Float[Tensor, "a v"]:
        """Return the logits that predict the answer tokens; see :class:`AnswerPass`.

        Args:
            branches: Branches by block.
        """
        both = {
            block: total([self.in_force[block], branch]) if block in self.in_force else branch
            for block, branch in branches.items()
        }
        with attached(self.view.model, beside(self.view, both)):
            return wide(answer_logits(self.view.model, self.rows, _constants(self.view)))


def read_inputs(view: ModelView, rows: Sequence[AnswerRow], block: int) -> Float[Tensor, "a d"]:
    """Return what a block's network reads where answer tokens are predicted.

    Args:
        view: The language model's structure.
        rows: Token ids of prompts and answers.
        block: Number of the block.

    Returns:
        Hidden states in float32, or float64 where the model is.
    """
    if view.is_encoder_decoder:
        return torch.cat(read_answers(view, rows, block))
    texts, _ = _texts(rows)
    name = ffn_input(view, block)
    read = read_last(view, texts, {name: "input"}, rows_per_pass=64)[name]
    return read.to(_state_type(view, block))


def read_answers(
    view: ModelView, rows: Sequence[AnswerRow], block: int
) -> list[Float[Tensor, "_ d"]]:
    """Return what a block's network of a decoder reads where answer tokens are predicted, by row.

    Args:
        view: The structure of a language model of two stacks.
        rows: Token ids of prompts and answers.
        block: Number of the decoder's block.

    Returns:
        Hidden states in float32, or float64 where the model is.
    """
    name, dtype = ffn_input(view, block), _state_type(view, block)
    found: dict[int, Tensor] = {}
    for numbers in length_sorted([len(prompt) + len(answer) for prompt, answer in rows], 32):
        part = AnswerRows.of(view.model, [rows[number] for number in numbers])
        with evaluating(view.model), capture(view.model, {name: "input"}, stop=True) as seen:
            view.model(**part.inputs, use_cache=False)
        states = seen[name].detach().to(dtype)
        for line, number in enumerate(numbers):
            found[number] = states[line, part.positions[part.rows == line]]
    return [found[number] for number in range(len(rows))]


def read_states(view: ModelView, rows: Sequence[Ids], block: int) -> list[Float[Tensor, "_ d"]]:
    """Return what a block's network reads at every token of texts.

    Args:
        view: The structure of a decoder-only language model.
        rows: Token ids of the texts.
        block: Number of the block.

    Returns:
        Hidden states in float32, or float64 where the model is.
    """
    name, dtype = ffn_input(view, block), _state_type(view, block)
    device = view.embeddings.get_parameter("weight").device
    found: dict[int, Tensor] = {}
    for numbers in length_sorted([len(row) for row in rows], 32):
        ids, mask = pad([rows[number] for number in numbers])
        with evaluating(view.model), capture(view.model, {name: "input"}, stop=True) as seen:
            view.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        for line, number in enumerate(numbers):
            found[number] = seen[name][line, : len(rows[number])].detach().to(dtype)
    return [found[number] for number in range(len(rows))]


def _state_type(view: ModelView, block: int) -> torch.dtype:
    """Return the type of hidden states that are kept: at least single precision."""
    weight = view.model.get_parameter(f"{ffn_input(view, block)}.weight")
    return torch.promote_types(weight.dtype, torch.float32)


def _texts(rows: Sequence[AnswerRow]) -> tuple[list[TokenizedText], list[int]]:
    """Return one text per answer token, which ends where the token is predicted."""
    texts, targets = [], []
    for number, (prompt, answer) in enumerate(rows):
        for place, token in enumerate(answer):
            ids = (*prompt, *answer[:place])
            texts.append(TokenizedText(number, ids, len(ids) - 1, (token,), None, len(ids) - 1))
            targets.append(token)
    return texts, targets


def _constants(view: ModelView) -> dict[str, Tensor]:
    """Return the model's weights without gradients, so that only branches get some."""
    return {name: value.detach() for name, value in view.model.named_parameters()}
