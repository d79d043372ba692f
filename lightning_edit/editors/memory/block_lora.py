"""Dynamic LoRA of MELO: each batch of edits has a small block of its own, and a prompt reads one.

Axis names: ``b`` -- rows; ``t`` -- positions; ``p`` -- rank of a block; ``d_in``/``d_out`` -- width
of a module's input and output.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.memory.neuron_index import NO_BLOCK, NeuronIndex
from lightning_edit.inference.model_call import ModelCall
from lightning_edit.inference.module_adapter import ModuleAdapter

#: Name of the decision.
_NAME = "block_lora"


def block_update(
    hidden: Float[Tensor, "... d_in"],
    down: Float[Tensor, "p d_in"],
    up: Float[Tensor, "d_out p"],
    scale: float,
) -> Float[Tensor, "... d_out"]:
    """Return what a block adds to a module's output.

    Args:
        hidden: Input of the module.
        down: First factor A of the block.
        up: Second factor B.
        scale: Factor of the product, r / p in the authors' code.
    """
    return (hidden.to(down.dtype) @ down.mT @ up.mT) * scale


class IndexAdapter(ModuleAdapter):
    """Decides at the index module which block a prompt reads; its output stays as it is.

    Args:
        index: The clusters; a copy of what they hold is kept.
    """

    by_prompt = True

    def __init__(self, index: NeuronIndex) -> None:
        self.index = index.copy()

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        """Return the module's own output."""
        assert call is not None

        def decide() -> Tensor:
            return torch.tensor(self.index.look_up(call.at_ends(output).float()))

        call.decide(_NAME, decide)
        return output


class BlockAdapter(ModuleAdapter):
    """Adds to a module's output the block that the prompt of each row reads.

    Args:
        factors: Factors A and B of every block, of this module.
        scale: Factor of their product.
    """

    by_prompt = True

    def __init__(self, factors: Sequence[tuple[Tensor, Tensor]], scale: float) -> None:
        self.factors = list(factors)
        self.scale = scale

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        """Return the output, with a block's part in the rows that read one."""
        assert call is not None
        chosen: Tensor = call.decide(_NAME, _undecided)
        found = output
        for number in sorted(set(chosen.tolist()) - {NO_BLOCK}):
            rows = (chosen == number).nonzero().squeeze(1).to(output.device)
            down, up = (one.to(hidden.device) for one in self.factors[number])
            new = output[rows] + block_update(hidden[rows], down, up, self.scale)
            found = found.index_copy(0, rows, new.to(output.dtype))
        return found


def _undecided() -> Tensor:
    raise AssertionError("the index stands below every block, so it decides first")
