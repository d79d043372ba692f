"""Tokenized prompt with the positions that a forward pass reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of one text, with the positions of its subject, answer and watched token.

    Args:
        request: Number of the request in its batch.
        ids: Input ids; the answer's last token is left out, since nothing is predicted from it.
        subject: Position of the subject's last token.
        answer: Target tokens of the last ``len(answer)`` positions; empty for keys.
        watch: Position whose next-token distribution is to be preserved, or ``None``.
        lead: Number of prefix tokens that come from the context template alone and are shared.
    """

    request: int
    ids: tuple[int, ...]
    subject: int
    answer: tuple[int, ...] = ()
    watch: int | None = None
    lead: int = 0

    def until_subject(self) -> "TokenizedText":
        """Truncate the text after the subject's last token; its key depends on no later token."""
        return TokenizedText(
            self.request, self.ids[: self.subject + 1], self.subject, lead=self.lead
        )
