"""Context of a prompt: the texts in front of it, as many as the model has positions for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText


@dataclass(frozen=True)
class Context:
    """What stands before a prompt, and the prompt itself.

    Args:
        essential: The new fact and the prompt, in their template; never cut.
        optional: Texts before them (demonstrations, further facts), in the order in which they are
            read. Where they do not all fit, the first ones are left out.
        least_last: Leave out the last ones first, where the texts are sorted by falling similarity.
    """

    essential: str
    optional: Sequence[str] = ()
    least_last: bool = False

    def text(self, count: int) -> str:
        """Return the prompt with ``count`` of the optional texts.

        Args:
            count: Number of optional texts, from 0 to all.
        """
        cut = len(self.optional) - count
        kept = self.optional[:count] if self.least_last else self.optional[cut:]
        return "".join(kept) + self.essential


@dataclass(frozen=True)
class Told:
    """A prompt with its context, as the model reads it.

    Args:
        prompt: The text that is asked.
        texts: Number of optional texts in it.
        cut: Number of optional texts that were left out for room.
        tokens: Tokens of the text.
    """

    prompt: str
    texts: int
    cut: int
    tokens: int


@dataclass
class ContextUse:
    """Count of what was put before distinct prompts since the editor was bound.

    Args:
        told: Prompts that got a context.
        cut: Of these, prompts with fewer optional texts than the method puts there.
        texts: Optional texts in all of them.
        texts_cut: Optional texts that were left out for room.
        unfit: Prompts that were asked plain, since not even the new fact fits before them.
        failed: Dialogues without a final answer.
    """

    told: int = 0
    cut: int = 0
    texts: int = 0
    texts_cut: int = 0
    unfit: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Room:
    """Positions of a model, and what of them a context may take.

    With two stacks the answer takes none of the positions of the encoder, which reads the prompt.

    Args:
        prompts: The prompt encoder of the model.
        answer: Positions that are kept for the answer; at most a quarter of all.

    Attributes:
        most: Tokens that context and prompt may have; ``None``: any number.
    """

    prompts: PromptEncoder
    answer: int
    most: int | None = field(init=False)

    def __post_init__(self) -> None:
        positions = self.positions
        kept = 0 if positions is None or self.prompts.two_stacks else positions // 4
        room = None if positions is None else positions - min(self.answer, kept)
        object.__setattr__(self, "most", room)

    @property
    def positions(self) -> int | None:
        """Positions of what reads the prompt; ``None``: no limit."""
        limits = self.prompts.limits
        return limits.encoder if self.prompts.two_stacks else limits.positions

    def fit(self, context: Context, most: int | None = None) -> Told | None:
        """Return a prompt with as many of its optional texts as fit.

        Args:
            context: The context.
            most: Tokens at most; ``None``: what the model has room for.

        Returns:
            The prompt; ``None`` if not even the essential part fits.
        """
        most, every = self.most if most is None else most, len(context.optional)
        low, high = -1, every  # as many texts fit for sure (-1: it is not known of any), at most
        found = count = every
        while low < high:
            tokens = self.tokens(context.text(count))
            if most is None or tokens <= most:
                low, found = count, tokens
            else:
                high = count - 1
            count = (low + high + 1) // 2
        return None if low < 0 else Told(context.text(low), low, every - low, found)

    def tokens(self, prompt: str, answer: str | None = None, separator: str | None = None) -> int:
        """Count the tokens of a prompt, alone or with an answer; any number of them.

        Args:
            prompt: The prompt.
            answer: The answer.
            separator: Text between them; ``None``: by rule.
        """
        rendered = self.prompts.render(PromptText(prompt, answer, separator=separator))
        special = not rendered.special
        encoded = self.prompts.tokenizer(rendered.text, add_special_tokens=special, verbose=False)
        return len(encoded["input_ids"])

    def left_for(self, told: Told, answer: str, separator: str | None) -> int | None:
        """Return the room for a context whose prompt has a long answer.

        Args:
            told: The prompt with its context.
            answer: The answer.
            separator: Text between them; ``None``: by rule.

        Returns:
            Tokens that prompt and context may have; ``None`` if the answer fits as it is.
        """
        positions = self.prompts.limits.positions
        # A token is at least a byte, so most answers need no counting.
        if positions is None or told.tokens + len(answer.encode()) + 8 <= positions:
            return None
        whole = self.tokens(told.prompt, answer, separator)
        return None if whole <= positions else positions - (whole - told.tokens)
