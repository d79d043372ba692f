"""Teacher-forced score of one answer. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_edit.functional.measures import NLL_CAP, agreement, mean


@dataclass(frozen=True)
class AnswerScore:
    """Teacher-forced score of one answer: argmax and negative log-probability of each token.

    Args:
        text: The answer.
        target_ids: Its token ids.
        argmax_ids: The model's most probable token at each position.
        nlls: Negative log-probability of each token, in nats.
    """

    text: str
    target_ids: tuple[int, ...]
    argmax_ids: tuple[int, ...]
    nlls: tuple[float, ...]

    @property
    def nll(self) -> float:
        """Mean negative log-probability per token, in nats."""
        return mean(self.nlls)

    @property
    def is_broken(self) -> bool:
        """Whether a token's score stands at the cap, as where the model's outputs are no numbers.

        The most probable tokens say nothing then.
        """
        return not all(nll < NLL_CAP for nll in self.nlls)

    @property
    def token_acc(self) -> float:
        """Token accuracy: share of tokens that are the argmax."""
        return agreement(self.argmax_ids, self.target_ids)

    @property
    def em(self) -> float:
        """Exact match: 1.0 if every token is the argmax, else 0.0."""
        return float(self.argmax_ids == self.target_ids)

    def to_row(self) -> dict[str, Any]:
        """Serialise to plain containers, for JSON."""
        return {
            "text": self.text,
            "target_ids": list(self.target_ids),
            "argmax_ids": list(self.argmax_ids),
            "nlls": list(self.nlls),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "AnswerScore":
        """Deserialise a row of :meth:`to_row`."""
        return cls(
            row["text"], tuple(row["target_ids"]), tuple(row["argmax_ids"]), tuple(row["nlls"])
        )
