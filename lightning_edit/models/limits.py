"""What a language model can read: positions of its stacks, and rows of its embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_edit.exceptions import DataError


@dataclass(frozen=True)
class Limits:
    """What a language model can read.

    Args:
        positions: Longest text in tokens, prompt and answer together; ``None``: no limit, as with
            two stacks.
        vocabulary: Rows of its embedding; ``None``: not known.
        encoder: With two stacks, the longest prompt in tokens; ``None``: no limit (T5).
        decoder: With two stacks, the longest answer in tokens; ``None``: no limit (T5).
    """

    positions: int | None = None
    vocabulary: int | None = None
    encoder: int | None = None
    decoder: int | None = None

    def check(
        self,
        tokenizer: Any,
        prompt: str,
        ids: Sequence[int],
        length: int,
        side: Literal["whole", "prompt", "answer"],
    ) -> None:
        """Check that a model can read a text.

        Args:
            tokenizer: Names tokens in the error message.
            prompt: The prompt, for the error message.
            ids: Token ids.
            length: Number of tokens that one stack reads.
            side: What they are: ``whole`` for one stack, which reads prompt and answer; with two
                stacks ``prompt`` for the encoder and ``answer`` for the decoder.

        Raises:
            DataError: If there are more tokens than the model takes, or one that its embedding
                does not have.
        """
        room, what, reader, remedy = {
            "whole": (self.positions, "the prompt {} and its answer have", "model", "prompt"),
            "prompt": (self.encoder, "the prompt {} has", "encoder", "prompt"),
            "answer": (self.decoder, "the answer to {} has", "decoder", "answer"),
        }[side]
        if room is not None and length > room:
            raise DataError(
                f"{what.format(f'{prompt[:60]!r}…')} {length} tokens but the {reader} takes "
                f"{room}; shorten the {remedy}"
            )
        rows = self.vocabulary
        if rows is not None and (beyond := [token for token in ids if token >= rows]):
            name = tokenizer.convert_ids_to_tokens(beyond[0])
            raise DataError(
                f"the token {name!r} of {prompt[:60]!r} has number {beyond[0]}, but the "
                f"model's embedding has {rows} rows; call model.resize_token_embeddings(...) "
                "after adding tokens, or load model and tokenizer of one folder"
            )


def max_positions(model: Any) -> int | None:
    """Return the context length of a model in tokens; ``None`` if it has no limit.

    Args:
        model: A Hugging Face language model.
    """
    config = model.config.get_text_config(decoder=True)
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
