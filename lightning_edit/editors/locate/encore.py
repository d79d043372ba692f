"""ENCORE: Gupta et al., Lifelong Knowledge Editing without Model Degradation, 2502.01636."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.editors.locate.search_objective import EarlyStopping
from lightning_edit.functional.solve import Preserved


class ENCORE(MultiLayerEditor):
    r"""MEMIT for thousands of edits: a history of keys, a bound on ‖Δ‖, and an early end of search.

    :math:`\Delta = R K^\top (\lambda C + \mu I + \sum K_p K_p^\top + K K^\top)^{-1}`. The search
    ends a few passes after the target has become the likeliest answer (most-probable early
    stopping): more early_stopping makes larger targets, which wear the model out.

    Args:
        moment_weight: λ, as in MEMIT; ``None``: the width of a key.
        norm_weight: μ: 10 for GPT-2 XL and Llama 2, 20 for Llama 3 in the authors' configs.
        patience: The search ends in the so-manieth pass in which the target is the likeliest answer
            in all contexts: 4 for GPT-2 XL, 3 for Llama 2, 2 for Llama 3 (``prob_cutoff``).
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search (0.75 in the authors' configs).
        keep_history: Whether later batches leave the keys of earlier ones alone.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        All tokens of the target count, in all contexts. The authors' code leaves out the bare
        prompt and compares the number of right tokens with five, so it never stops a target of two
        tokens. As there, the history holds the keys that were solved for, not those of the
        edited model.
    """

    history_by_default: ClassVar[bool] = True
    history_keys: ClassVar[Literal["edited", "solved"]] = "solved"

    def __init__(
        self,
        moment_weight: float | None = None,
        norm_weight: float = 10.0,
        patience: int = 4,
        clamp: float = 0.75,
        keep_history: bool = True,
        **search: Any,
    ) -> None:
        super().__init__(clamp=clamp, keep_history=keep_history, **search)
        self.moment_weight = moment_weight
        self.norm_weight = norm_weight
        self.objective = replace(self.objective, early_stopping=EarlyStopping(patience=patience))

    def preserve(self, layer: int, moment: Float[Tensor, "f f"] | None) -> Preserved:
        """Factor λC + μI and the history."""
        return self.factored(layer, moment, self.moment_weight, self.norm_weight)
