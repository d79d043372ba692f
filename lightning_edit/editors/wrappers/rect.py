"""RECT: Gu et al., Model Editing Harms General Abilities of Large Language Models, EMNLP 2024.

arXiv 2401.04700.
"""

from lightning_edit.editors.base import Editor
from lightning_edit.editors.wrappers.base import UpdateShaper
from lightning_edit.edits.delta import Dense, WeightUpdate
from lightning_edit.functional.shaping import keep_relatively_largest
from lightning_edit.models.weights import weight


class RECT(UpdateShaper):
    """Sparsified update: keep only the entries with the largest relative change of their weight.

    Args:
        editor: The host; ``None``: MEMIT.
        kept: Share of each matrix's entries that are kept: 0.4 in AlphaEdit's published comparison,
            0.2 in the authors' own code.

    Note:
        The authors' code zeroes in a block that is commented out and divides by weights that may be
        zero; here 1e-8 is added, as in AlphaEdit's copy. A bias trained by the host is not changed.
        The result is dense even if the host's update is low-rank.

        What is zeroed is missing in the answers: of 20 facts that a batch of MEMIT writes 18 of
        into a GPT-2 of 6 blocks, RECT with its defaults writes 14, and keeps 0.93 of their
        neighbours, MEMIT 0.90. A larger ``kept`` writes more.
    """

    def __init__(self, editor: Editor | None = None, kept: float = 0.4) -> None:
        super().__init__(editor)
        if not 0 < kept <= 1:
            raise ValueError(f"kept is a share in (0, 1], got {kept}; published: 0.4 and 0.2")
        self.kept = kept

    def transform(self, name: str, update: WeightUpdate) -> WeightUpdate:
        """Sparsify the update: zero the entries with the smallest relative change.

        Args:
            name: The parameter, not edited yet.
            update: The host's update of it.
        """
        value = update.dense()
        if value.ndim != 2:
            return update
        before = weight(self.language_model, name).read().to(value.device)
        return Dense(keep_relatively_largest(value, before, self.kept).float())
