"""States of an encoder, computed once for all the answers and the continuation of a prompt.

Axis names: ``b`` -- rows; ``s`` -- prompt tokens, padded on the right; ``d`` -- width.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.functional.padding import pad
from lightning_edit.models.prompt_encoder import Ids

T = TypeVar("T")

#: Prompt tokens whose states are kept at a time; at a width of 2,048 in float32, 256 MB.
_MOST_TOKENS = 32_768


class EncodedPrompts:
    """States of the prompts that were asked of a model of two stacks so far.

    Whoever asks throws it away with the model's present state: it does not see an edit. Only for
    models on which nothing decides by prompt or expects a row per text, see
    :class:`~lightning_edit.inference.pass_layout.PassLayout`.

    Args:
        model: An encoder-decoder model in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._states: dict[Ids, Tensor] = {}
        self._output: Any = (
            None  # the class of the encoder's outputs, of which a family has its own
        )

    def inputs(self, prompts: Sequence[Ids]) -> dict[str, Any]:
        """Return the arguments of the model that stand for prompts; runs the encoder where needed.

        Args:
            prompts: Token ids of a batch of prompts, one a row; equal ones are encoded once.

        Returns:
            ``encoder_outputs`` and ``attention_mask``.
        """
        new = list(dict.fromkeys(one for one in prompts if one not in self._states))
        if new:
            self._encode(new)
        rows = [self._states[one] for one in prompts]
        mask = pad(prompts)[1].to(rows[0].device)
        states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"encoder_outputs": self._output(last_hidden_state=states), "attention_mask": mask}

    def _encode(self, prompts: Sequence[Ids]) -> None:
        ids, mask = self._padded(prompts)
        outputs = self.model.get_encoder()(input_ids=ids, attention_mask=mask)
        self._output = type(outputs)
        states: Float[Tensor, "b s d"] = outputs.last_hidden_state
        for prompt, row in zip(prompts, states, strict=True):
            self._states[prompt] = row[: len(prompt)]

    def _padded(self, prompts: Sequence[Ids]) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
        device = self.model.get_input_embeddings().weight.device
        ids, mask = pad(prompts)
        return ids.to(device), mask.to(device)


def parts_of(asked: Mapping[Ids, T], most: int = _MOST_TOKENS) -> Iterator[dict[Ids, T]]:
    """Split what is asked by prompt, so that the states of a part fit in memory.

    Args:
        asked: What is asked, by the token ids of its prompt.
        most: Most prompt tokens of a part, padding counted; a longer prompt is a part alone.

    Yields:
        Parts, the longest prompts first.
    """
    part: dict[Ids, T] = {}
    longest = 0
    for prompt in sorted(asked, key=lambda ids: (-len(ids), ids)):
        if part and longest * (len(part) + 1) > most:
            yield part
            part = {}
        longest = longest if part else len(prompt)
        part[prompt] = asked[prompt]
    if part:
        yield part
