"""FT, FT-L, FT-M (fine-tuning): Zhu et al., Modifying Memories in Transformer Models, 2020.

arXiv 2012.00363; an editing baseline in ROME (2202.05262) and MEMIT (2210.07229).
"""

from typing import Literal

from lightning_edit.editors.gradient.base import GradientEditor, TrainingObjective


class FTL(GradientEditor):
    """FT-L: fine-tuning of one MLP down-projection under an L∞ norm constraint per weight.

    Args:
        layers: Blocks to train; ``None``: the first, as in ROME's configs.
        steps: Epochs over the batch (25 in ROME's configs); ``auto``: until the facts are learnt,
            see :class:`~lightning_edit.editors.gradient.base.GradientEditor`.
        lr: Adam's learning rate (5e-4 in ROME's configs); ``auto``: see
            :class:`~lightning_edit.editors.gradient.base.GradientEditor`.
        weight_decay: Adam's weight decay (0 in ROME's configs).
        norm_constraint: Largest change of any single weight: 5e-4 for GPT-2 XL, 5e-5 for GPT-J;
            ``auto``: :data:`~lightning_edit.editors.gradient.base.STEPS_IN_BOX` times ``lr``.
        objective: See :class:`~lightning_edit.editors.gradient.base.GradientEditor`.
        threshold: Loss below which training stops (1e-2 in ROME's code); ``auto``: each
            request's own.
        batch_size: Requests per optimiser step (64 in ROME's code).

    Note:
        In sequential editing the constraint is relative to the weights before each edit, as in the
        authors' code. Many papers' "FT-L" comes from a framework that has no constraint by default.
        As of :class:`FT`, the loss of ``prompt_last`` does not say in which order the tokens of an
        answer come: of twice 20 facts of the embedded model FT-L writes 15 and 17, and of a GPT-2
        whose answers have fewer tokens 18 and 17.
    """

    def __init__(
        self,
        layers: list[int] | None = None,
        steps: int | Literal["auto"] = "auto",
        lr: float | Literal["auto"] = "auto",
        weight_decay: float = 0.0,
        norm_constraint: float | Literal["auto"] = "auto",
        objective: TrainingObjective = "prompt_last",
        threshold: float | Literal["auto"] = "auto",
        batch_size: int = 64,
    ) -> None:
        super().__init__(
            layers, steps, lr, weight_decay, norm_constraint, objective, threshold, batch_size
        )

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layer, the first block (GPT-2 XL and GPT-J in ROME's configs)."""
        return [0]


class FT(GradientEditor):
    """FT: unconstrained fine-tuning of one MLP down-projection.

    Args:
        layers: Blocks to train; ``None``: one at two thirds of the depth.
        steps: Epochs over the batch (25 in ROME's, MEMIT's and EasyEdit's configs); ``auto``:
            until the facts are learnt, see
            :class:`~lightning_edit.editors.gradient.base.GradientEditor`.
        lr: Adam's learning rate (5e-4 in those configs); ``auto``: see
            :class:`~lightning_edit.editors.gradient.base.GradientEditor`.
        weight_decay: Adam's weight decay; MEMIT's FT-W sets it from the number of edits.
        objective: See :class:`~lightning_edit.editors.gradient.base.GradientEditor`.
        threshold: Loss below which training stops (1e-2 in ROME's code); ``auto``: each
            request's own.
        batch_size: Requests per optimiser step (64 in ROME's code).

    Note:
        The loss of ``prompt_last`` does not say in which order the tokens of an answer come, so
        longer answers are generated wrongly however well they are learnt: of twice 20 facts of the
        embedded model FT writes 14 and 16, and with ``objective="target_new"`` (:class:`FTM`) all.
    """

    def __init__(
        self,
        layers: list[int] | None = None,
        steps: int | Literal["auto"] = "auto",
        lr: float | Literal["auto"] = "auto",
        weight_decay: float = 0.0,
        objective: TrainingObjective = "prompt_last",
        threshold: float | Literal["auto"] = "auto",
        batch_size: int = 64,
    ) -> None:
        super().__init__(layers, steps, lr, weight_decay, None, objective, threshold, batch_size)

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layer, at two thirds of the depth (Llama 21 of 32, GPT-J 21 of 28).

        Both are published; ROME's config for GPT-2 XL has block 1.
        """
        return [round(0.68 * (num_blocks - 1))]


class FTM(GradientEditor):
    """FT-M: fine-tuning of one MLP down-projection with the loss masked to the answer tokens.

    Each answer token is learnt at its own position with teacher forcing; the prompt is masked out.
    This is the fair baseline where answers have more than one token.

    Args:
        layers: Blocks to train; ``None``: that of :class:`FT`.
        steps: Epochs over the batch (25 in EasyEdit's configs); ``auto``: until the facts are
            learnt, see :class:`~lightning_edit.editors.gradient.base.GradientEditor`.
        lr: Adam's learning rate (5e-4 in EasyEdit's configs); ``auto``: see
            :class:`~lightning_edit.editors.gradient.base.GradientEditor`.
        weight_decay: Adam's weight decay (0 in EasyEdit's configs).
        norm_constraint: Largest change of any single weight; ``None``: no limit, as in EasyEdit's
            configs for Llama.
        threshold: Loss below which training stops (1e-2 in EasyEdit); ``auto``: each request's
            own.
        batch_size: Requests per optimiser step.

    Note:
        EasyEdit uses left padding without position ids for GPT-2, so there a request's loss depends
        on the longest one in its batch; here it does not.
    """

    def __init__(
        self,
        layers: list[int] | None = None,
        steps: int | Literal["auto"] = "auto",
        lr: float | Literal["auto"] = "auto",
        weight_decay: float = 0.0,
        norm_constraint: float | Literal["auto"] | None = None,
        threshold: float | Literal["auto"] = "auto",
        batch_size: int = 64,
    ) -> None:
        super().__init__(
            layers, steps, lr, weight_decay, norm_constraint, "target_new", threshold, batch_size
        )

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layer of :class:`FT`."""
        return FT.default_layers(num_blocks)
