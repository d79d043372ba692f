"""Answer pass: one forward pass over prompts with answers, with logits at chosen positions only.

How rows are laid out is the choice of a backend (:mod:`~lightning_edit.inference.pass_backends`):
anything that reads the head at the tokens of an answer goes through :func:`logits_at`.

Axis names: ``p`` -- positions that are read, row after row; ``v`` -- vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from lightning_edit.inference.hooks import select_head_positions
from lightning_edit.inference.model_call import telling

Ids = tuple[int, ...]
Places = tuple[Int[Tensor, " p"], Int[Tensor, " p"]]
"""Lines of a pass's input, and positions in them."""


class ReadRow(NamedTuple):
    """A prompt and tokens after it; the prediction after the prompt and after each token is read.

    Args:
        context: Token ids of the prompt.
        fed: Token ids that follow it, so that ``len(fed) + 1`` predictions are read.
    """

    context: Ids
    fed: Ids = ()


@dataclass(frozen=True)
class ForwardPass:
    """One call of a model: its inputs, the rows in it, and the positions that are read.

    Args:
        inputs: Arguments of the model.
        rows: Indices of the rows that are read in it.
        places: Where each row's predictions stand, row after row.
        within: Context in which the model is called, such as another attention function.
        prompt_ends: Position of the prompt's last token in each line of the input; ``None`` where
            prompts share tokens.
        read_prompts: Returns further arguments, of which the prompts are read when the pass is run
            (the states of an encoder).
    """

    inputs: Mapping[str, Tensor]
    rows: Sequence[int]
    places: Places
    within: Callable[[Any], AbstractContextManager[None]] = lambda _: nullcontext()
    prompt_ends: Sequence[int] | None = None
    read_prompts: Callable[[], Mapping[str, Any]] = dict


@runtime_checkable
class PassBackend(Protocol):
    """How rows are laid out in forward passes. Results of two backends differ in rounding only.

    To add one, implement :meth:`passes` and give it to a
    :class:`~lightning_edit.inference.model_responder.ModelResponder`.
    """

    @property
    def shares_prefixes(self) -> bool:
        """Whether tokens that rows have in common are computed once.

        Editors that change tokens of a prompt by that prompt's own decision get only backends that
        share nothing.
        """

    def passes(self, model: Any, rows: Sequence[ReadRow], batch_size: int) -> Iterator[ForwardPass]:
        """Lay out rows in forward passes.

        Args:
            model: The language model.
            rows: The rows.
            batch_size: Most rows in a pass.

        Yields:
            Passes that read every row once.

        Raises:
            NotPackableError: If this model cannot run so; padded rows are used then.
        """


PassObserver = Callable[[Sequence[int] | None], AbstractContextManager[None]]
"""Called before a pass with its ``prompt_ends``; the model is called within what it returns."""


def unobserved(prompt_ends: Sequence[int] | None) -> AbstractContextManager[None]:
    """Observe nothing: the observer of a bare model.

    Args:
        prompt_ends: Position of each prompt's last token.
    """
    return nullcontext()


def run_pass(
    model: nn.Module, one: ForwardPass, observer: PassObserver = unobserved
) -> Float[Tensor, "p v"]:
    """Run a pass and return the logits at its places.

    Args:
        model: The language model, in evaluation mode.
        one: The pass.
        observer: Told where prompts end, for editors that decide there.
    """
    # The observer comes last: it may know better, as for running text.
    with telling(model, one.prompt_ends), observer(one.prompt_ends), one.within(model):
        return logits_at(model, {**one.read_prompts(), **one.inputs}, one.places)


def logits_at(
    model: Any,
    inputs: Mapping[str, Any],
    places: Places,
    parameters: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "p v"]:
    """Call a language model and return the logits at some positions; the head runs only there.

    Args:
        model: A Hugging Face language model.
        inputs: Its arguments, without a cache: tensors, tuples of some, or an encoder's outputs.
        places: Lines and positions that are read.
        parameters: Values that replace the model's parameters, by name; gradients flow to them.
    """
    # A model that is sharded over devices expects its ids on the embedding's device.
    device = model.get_input_embeddings().weight.device
    arguments = {name: _placed(value, device) for name, value in inputs.items()}
    arguments["use_cache"] = False
    with select_head_positions(model, (places[0].to(device), places[1].to(device))):
        if parameters:
            output = functional_call(model, dict(parameters), kwargs=arguments)
        else:
            output = model(**arguments)
    logits: Tensor = output.logits
    return logits.squeeze(1)


def _placed(value: Any, device: torch.device) -> Any:
    """Move tensors, also those of a tuple (the states of an encoder), to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    # An encoder's outputs are where the model left them, and where it wants them.
    return tuple(one.to(device) for one in value) if isinstance(value, tuple) else value


def wide(logits: Float[Tensor, "p v"]) -> Float[Tensor, "p v"]:
    """Return logits in at least single precision.

    Args:
        logits: Logits of any floating-point type.
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
