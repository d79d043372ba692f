"""A prompt in tokens, with the positions that a pass over it reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenizedText:
    """One text in tokens.

    Args:
        request: Number of the request in its batch.
        ids: Input tokens; the answer's last token is no input, since nothing is predicted from it.
        subject: Position of the subject's last token.
        answer: Tokens that the last ``len(answer)`` positions are to predict; empty for keys.
        watch: Position whose whole distribution is to stay, or ``None``.
        lead: Tokens that come from the context template alone, so that other texts have them too.
    """

    request: int
    ids: tuple[int, ...]
    subject: int
    answer: tuple[int, ...] = ()
    watch: int | None = None
    lead: int = 0

    def until_subject(self) -> "TokenizedText":
        """Return the text up to the subject's last token, which is all that its key depends on."""
        return TokenizedText(
            self.request, self.ids[: self.subject + 1], self.subject, lead=self.lead
        )
