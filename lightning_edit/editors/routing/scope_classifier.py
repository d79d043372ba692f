"""Scope classifier: says whether a question falls under a stored edit (SERAC).

Axis names: ``q`` -- questions; ``m`` -- edits; ``n`` -- pairs or texts; ``d`` -- encoder's width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_edit.editors.routing.networks import ScopeKind
from lightning_edit.functional.padding import pad
from lightning_edit.functional.scope import embedding_log_scores, pair_log_scores
from lightning_edit.models.prompt_encoder import Ids

#: Tokenised texts that are kept.
_KEPT = 1 << 16


class StoredEdit(NamedTuple):
    """An edit as a memory keeps it: text.

    Args:
        prompt: Prompt of the request.
        target: Its new answer.
    """

    prompt: str
    target: str

    @property
    def context(self) -> str:
        """The edit as text in front of a question."""
        return f"{self.prompt} {self.target} "


class ScopeTokens:
    """Token ids of edits and questions for a scope classifier.

    A question is ``[CLS] question [SEP]``, an edit ``[CLS] prompt [SEP] answer [SEP] [SEP]``, a
    pair ``[CLS] prompt [SEP] answer [SEP] question [SEP]``, as the authors' code makes them. A
    tokenizer without such tokens has its BOS or EOS in their place. Of a text that is too long the
    beginning is left out, since a question stands at its end.

    Args:
        tokenizer: A fast tokenizer.
        room: Most tokens that the encoder reads; ``None``: no limit.
    """

    def __init__(self, tokenizer: Any, room: int | None) -> None:
        self.tokenizer = tokenizer
        self.room = room
        begins = (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
        ends = (tokenizer.sep_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
        self.begin: Ids = tuple(one for one in begins if one is not None)[:1]
        self.end: Ids = tuple(one for one in ends if one is not None)[:1]
        self._known: dict[str, Ids] = {}

    def _words(self, text: str) -> Ids:
        if text not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            self._known[text] = tuple(ids)
        return self._known[text]

    def _fit(self, ids: Ids) -> Ids:
        if self.room is None or len(ids) <= self.room:
            return ids
        return self.begin + ids[len(self.begin) + len(ids) - self.room :]

    def question(self, text: str) -> Ids:
        """Return the token ids of a question."""
        return self._fit(self.begin + self._words(text) + self.end)

    def edit(self, edit: StoredEdit) -> Ids:
        """Return the token ids of an edit."""
        return self._fit(self._statement(edit) + self.end)

    def pair(self, edit: StoredEdit, question: str) -> Ids:
        """Return the token ids of an edit with a question."""
        return self._fit(self._statement(edit) + self._words(question) + self.end)

    def _statement(self, edit: StoredEdit) -> Ids:
        words = self._words(edit.prompt), self._words(edit.target)
        return self.begin + words[0] + self.end + words[1] + self.end


class ScopeClassifier(nn.Module):
    r"""Scope classifier of a memory of edits.

    ``embedding``: :math:`s = \exp(-\kappa\,\lVert q - e\rVert^2)` of encoder vectors at the first
    token. ``cross-attention``: the first of two outputs of a classifier that reads edit and
    question together.

    Args:
        network: The encoder.
        kind: One of the two.
        heads: Slices of the vector; the closest one counts.
        scale: :math:`\kappa`.
        cosine: Cosine distance in place of the squared Euclidean one.
        bounded: Put the vectors through tanh.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        kind: ScopeKind,
        heads: int = 1,
        scale: float = 1.0,
        cosine: bool = False,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.kind = kind
        self.heads = heads
        self.scale = scale
        self.cosine = cosine
        self.bounded = bounded
        self.tokens: ScopeTokens | None = None

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""
        return self.network.device

    def read_with(self, tokenizer: Any) -> None:
        """Set the tokenizer of edits and questions.

        Args:
            tokenizer: A fast tokenizer.
        """
        room = getattr(self.network.config, "max_position_embeddings", None)
        self.tokens = ScopeTokens(tokenizer, room)

    @property
    def text(self) -> ScopeTokens:
        """Tokenisation of edits and questions."""
        assert self.tokens is not None  # set when the editor is bound
        return self.tokens

    def vectors(self, rows: Sequence[Ids]) -> Float[Tensor, "n d"]:
        """Return the encoder's vector at the first token of each row.

        Args:
            rows: Token ids of edits or questions.
        """
        ids, mask = pad(rows)
        output: Any = self.network(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        )
        states: Tensor = output.last_hidden_state
        return states[:, 0]

    def compare(
        self, questions: Float[Tensor, "q d"], edits: Float[Tensor, "m d"]
    ) -> Float[Tensor, "q m"]:
        """Return log scores of vectors.

        Args:
            questions: Vectors of questions.
            edits: Vectors of edits.
        """
        return embedding_log_scores(
            questions, edits, self.heads, self.scale, self.cosine, self.bounded
        )

    def pair_logits(self, rows: Sequence[Ids]) -> Float[Tensor, "n 2"]:
        """Return the two outputs of the pair classifier for each row.

        Args:
            rows: Token ids of pairs.
        """
        ids, mask = pad(rows)
        output: Any = self.network(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        )
        logits: Tensor = output.logits
        return logits

    def pair_scores(
        self,
        edits: Sequence[StoredEdit],
        questions: Sequence[str],
        pairs: Sequence[tuple[int, int]],
    ) -> Float[Tensor, " n"]:
        """Return log scores of some pairs, differentiable in the encoder.

        Args:
            edits: Edits.
            questions: Questions.
            pairs: Numbers of a question and of an edit.
        """
        if self.kind == "cross-attention":
            rows = [self.text.pair(edits[edit], questions[number]) for number, edit in pairs]
            return pair_log_scores(self.pair_logits(rows)[None])[0]
        rows = [self.text.edit(edit) for edit in edits]
        rows += [self.text.question(question) for question in questions]
        unique = list(dict.fromkeys(rows))
        place = {row: number for number, row in enumerate(unique)}
        numbers = torch.tensor([place[row] for row in rows], device=self.device)
        vectors = self.vectors(unique)[numbers]
        scores = self.compare(vectors[len(edits) :], vectors[: len(edits)])
        chosen = torch.tensor(pairs, device=self.device)
        return scores[chosen[:, 0], chosen[:, 1]]
