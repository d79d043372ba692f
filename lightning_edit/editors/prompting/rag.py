"""RAG: new facts retrieved into the prompt, the baseline of memory editors (MQuAKE, 2305.14795)."""

from collections.abc import Iterator
from statistics import median
from typing import Literal

from lightning_edit.editors.memory.neutral_texts import SAME_WORDS
from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.editors.prompting.context import Context
from lightning_edit.editors.prompting.facts import FactMemory

#: ``threshold="auto"``: wordings of neutral texts that are compared, ten subjects each.
WORDINGS = 3


class RAG(PromptingEditor):
    """Retrieval-augmented generation: the new facts nearest to a prompt stand before it.

    ``New Fact: <fact>`` lines, the nearest fact last, then ``Prompt: <prompt>``. Without a
    threshold every prompt gets ``k`` facts, however far they are, so prompts that no edit is about
    change too: of the neighbours of eight facts SmolLM2 (135 M) then answers 0.43 as before.

    Args:
        k: Facts before a prompt, at most.
        threshold: Least similarity of a fact (of the prompt that it was edited with) to the prompt,
            from 0 to 1; ``None``: any. ``auto``: half way from the similarity of prompts that say
            the same of two subjects, on neutral text, to 1, the prompt itself (0.52 with the
            ``lexical`` encoder). With the ``lexical`` encoder 0.5 tells most paraphrases of
            COUNTERFACT (median 0.7) from neighbours (median 0.3); other encoders have another
            scale.
        encoder: See :class:`PromptingEditor`.
        answer_room: See :class:`PromptingEditor`.

    Note:
        What a prompt says is taken up by models that learnt to read instructions: an instruct model
        of 135 M answered 12 of 12 facts, the embedded one, trained on single statements, 3 of 100.
    """

    def __init__(
        self,
        k: int = 4,
        threshold: float | Literal["auto"] | None = "auto",
        encoder: str = "lexical",
        answer_room: int = 24,
    ) -> None:
        super().__init__(encoder, answer_room)
        self.k = k
        self.threshold: float | Literal["auto"] | None = threshold
        self._least: float | None = None

    def on_bind(self) -> None:
        """Set up memory and texts; the threshold of ``auto`` is found when a prompt is asked."""
        super().on_bind()
        self._least = None

    def require_arguments(self) -> None:
        """Check the arguments of this editor."""
        super().require_arguments()
        self.require(self.k >= 1, "k", "1 or more", self.k)
        least = self.threshold
        in_range = least is None or least == "auto" or -1 <= least <= 1
        self.require(in_range, "threshold", "from 0 to 1, auto, or null", least)

    def least_similarity(self) -> float | None:
        """Return the similarity below which a fact stays away from a prompt; ``None``: any."""
        if self.threshold != "auto":
            return self.threshold
        if self._least is None:
            self._least = (1 + median(self._scores_of_subjects())) / 2
            self.chose({"threshold": self._least})
        return self._least

    def _scores_of_subjects(self) -> Iterator[float]:
        """Yield the similarity of neutral texts that say the same of two subjects."""
        for group in SAME_WORDS[:WORDINGS]:
            index = self._make_index(group)
            for number, text in enumerate(group):
                hits = index.nearest(text, len(group))
                yield from (hit.score for hit in hits if hit.place != number)

    def context(self, prompt: str, memory: FactMemory) -> Context | None:
        """Put the nearest facts before a prompt, the nearest one last."""
        found = memory.nearest(prompt, self.k, self.least_similarity())
        if not found:
            return None
        nearest, *further = [f"New Fact: {fact.sentence}\n" for fact in found]
        return Context(f"{nearest}Prompt: {prompt}", further[::-1])
