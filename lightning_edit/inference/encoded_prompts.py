"""States of an encoder, computed once for all the answers and the continuation of a prompt.

Axis names: ``b`` -- rows; ``s`` -- prompt tokens, padded on the right; ``d`` -- width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.functional.padding import pad
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.models.prompt_encoder import Ids

T = TypeVar("T")

#: Prompt tokens whose states are kept at a time; at a width of 2,048 in float32, 256 MB.
MOST_TOKENS = 32_768


class EncodedPrompts:
    """States of prompts in a model of two stacks, each read when it is first asked for.

    Whoever asks makes it anew for each question: it does not see an edit that comes later. It is
    for models on which nothing decides by prompt or expects a row per text, see
    :class:`~lightning_edit.inference.pass_layout.PassLayout`.

    Prompts are read in batches that all of them decide together, so that a state has the same bits
    whichever is asked for first, and in whichever process.

    Args:
        model: An encoder-decoder model in evaluation mode.
        prompts: Token ids of all prompts that will be asked for.
        batch_size: Most prompts that are read at once.
    """

    def __init__(self, model: Any, prompts: Iterable[Ids], batch_size: int) -> None:
        self.model = model
        listed = sorted(set(prompts))
        numbers = length_sorted([len(ids) for ids in listed], batch_size)
        self._batches = [[listed[number] for number in batch] for batch in numbers]
        self._batch_of = {ids: at for at, batch in enumerate(self._batches) for ids in batch}
        self._states: dict[Ids, Tensor] = {}
        self._output: Any = None  # class of the encoder's outputs: some families have their own

    def inputs(self, prompts: Sequence[Ids]) -> dict[str, Any]:
        """Return the arguments of the model that stand for prompts; runs the encoder where needed.

        Args:
            prompts: Token ids of a prompt a row, all among those that were announced.

        Returns:
            ``encoder_outputs`` and ``attention_mask``.
        """
        missing = {self._batch_of[ids] for ids in prompts if ids not in self._states}
        for number in sorted(missing):
            self._encode(self._batches[number])
        rows = [self._states[ids] for ids in prompts]
        mask = pad(prompts)[1].to(rows[0].device)
        states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"encoder_outputs": self._output(last_hidden_state=states), "attention_mask": mask}

    def _encode(self, prompts: Sequence[Ids]) -> None:
        device = self.model.get_input_embeddings().weight.device
        ids, mask = pad(prompts)
        outputs = self.model.get_encoder()(
            input_ids=ids.to(device), attention_mask=mask.to(device), return_dict=True
        )
        self._output = type(outputs)
        states: Float[Tensor, "b s d"] = outputs.last_hidden_state
        for prompt, row in zip(prompts, states, strict=True):
            self._states[prompt] = row[: len(prompt)]


def parts_of(asked: Mapping[Ids, T], most: int) -> Iterator[dict[Ids, T]]:
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
