"""MEMIT: Meng et al., Mass-Editing Memory in a Transformer, ICLR 2023, arXiv 2210.07229."""

from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.delta import Delta, LowRank
from lightning_edit.editors.locate import LocateThenEdit
from lightning_edit.editors.search import Targets
from lightning_edit.editors.tail import Site
from lightning_edit.editors.templates import OPENINGS
from lightning_edit.functional.solve import Preserved, Solution, least_squares
from lightning_edit.types import EditBatch


class MEMIT(LocateThenEdit):
    r"""Write many associations at once, spread over the MLPs of several consecutive blocks.

    For each layer, lowest first: :math:`\Delta = R K^\top (\lambda C + K K^\top)^{-1}` (eq. 14)
    with R the part of the remaining distance to the targets that this layer is to cover (eq. 20).

    Args:
        moment_weight: λ, how many corpus tokens the second moment C stands for: 15 000 for GPT-J,
            20 000 for GPT-2 XL in the authors' configs.
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search (0.75 in the authors' configs).
        search: Arguments of :class:`~lightning_edit.editors.locate.LocateThenEdit`.

    Note:
        λ should be read against the width f of a key: of one typical key's residual the share
        f / (λ + f) is written, so a small model needs a small λ.
    """

    site: ClassVar[Site] = "block"
    # `max_out_len` 10 in the authors' code.
    template_openings: ClassVar[tuple[str, ...]] = OPENINGS
    template_lengths: ClassVar[tuple[int, ...]] = (10,) * len(OPENINGS)

    def __init__(self, moment_weight: float = 15_000.0, clamp: float = 0.75, **search: Any) -> None:
        super().__init__(clamp=clamp, **search)
        self.moment_weight = moment_weight

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return three or more blocks in the lower third (published: Llama 4 to 8 of 32).

        The last block is never one of them: a target there could not act on later tokens.
        """
        top = num_blocks - 1
        first = round(0.13 * top)
        last = max(0, min(top - 1, max(first + 2, round(0.26 * top))))
        return list(range(min(first, last), last + 1))

    def preserve(self, layer: int, moment: Float[Tensor, "f f"] | None) -> Preserved:
        """Factor λC; with the identity for C, λI."""
        where = self.view.parameter(layer)
        if moment is None:
            return Preserved.of(ridge=self.moment_weight, where=where)
        return Preserved.of(moment.to(self.language_model.device), self.moment_weight, where=where)

    def write(self, batch: EditBatch, targets: Targets) -> Delta:
        """Return the updates of all layers.

        Args:
            batch: The requests.
            targets: Their target vectors, for the output of the last edited block.
        """
        layers, model = self.edited_layers, self.language_model
        texts = self.key_texts(batch)
        bare = texts[:: len(self.templates)]
        wanted = targets.wanted.double()
        weights: dict[str, LowRank] = {}
        solutions: list[Solution] = []
        with ExitStack() as stack:
            for done, layer in enumerate(layers):
                keys = self.at_subjects(texts, self.view.down_projection(layer), "input")
                now = self.at_subjects(bare, self.view.block(layers[-1]).name, "output")
                rest = (wanted - now) / (len(layers) - done)
                solution = least_squares(self._mean(keys).mT, rest.mT, self.preserved(layer))
                update = LowRank(solution.left.float(), solution.right.float())
                weights[self.view.parameter(layer)] = update
                solutions.append(solution)
                # The layers above are solved on the model that the lower ones have changed.
                stack.enter_context(Delta((), {self.view.parameter(layer): update}).applied(model))
        return Delta(batch.ids, weights, info=self.info(targets, solutions))

    def _mean(self, keys: Float[Tensor, "r f"]) -> Float[Tensor, "n f"]:
        """Average over templates: half for the bare prompt, half for all others together."""
        grouped = keys.reshape(-1, len(self.templates), keys.shape[1])
        if len(self.templates) == 1:
            return grouped[:, 0]
        return torch.stack([grouped[:, 0], grouped[:, 1:].mean(1)]).mean(0)
