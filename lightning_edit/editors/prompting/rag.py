"""RAG: new facts retrieved into the prompt, the baseline of memory editors (MQuAKE, 2305.14795)."""

from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.editors.prompting.context import Context
from lightning_edit.editors.prompting.facts import FactMemory


class RAG(PromptingEditor):
    """Retrieval-augmented generation: the new facts nearest to a prompt stand before it.

    ``New Fact: <fact>`` lines, the nearest fact last, then ``Prompt: <prompt>``. Without a
    threshold every prompt gets ``k`` facts, however far they are, so prompts that no edit is about
    change too.

    Args:
        k: Facts before a prompt, at most.
        threshold: Least similarity of a fact (of the prompt that it was edited with) to the prompt,
            from 0 to 1; ``None``: any. With the ``lexical`` encoder 0.5 tells most paraphrases of
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
        threshold: float | None = None,
        encoder: str = "lexical",
        answer_room: int = 24,
    ) -> None:
        super().__init__(encoder, answer_room)
        self.k = k
        self.threshold = threshold

    def require_arguments(self) -> None:
        """Check the arguments of this editor."""
        super().require_arguments()
        self.require(self.k >= 1, "k", "1 or more", self.k)
        least = self.threshold
        in_range = least is None or -1 <= least <= 1
        self.require(in_range, "threshold", "from 0 to 1, or null", least)

    def context(self, prompt: str, memory: FactMemory) -> Context | None:
        """Put the nearest facts before a prompt, the nearest one last."""
        found = memory.nearest(prompt, self.k, self.threshold)
        if not found:
            return None
        nearest, *further = [f"New Fact: {fact.sentence}\n" for fact in found]
        return Context(f"{nearest}Prompt: {prompt}", further[::-1])
