"""ICE: in-context editing without demonstrations, Cohen et al., TACL 2024, arXiv 2307.12976."""

from typing import Literal

from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.editors.prompting.context import Context
from lightning_edit.editors.prompting.facts import FactMemory


class ICE(PromptingEditor):
    """In-context editing: the new facts alone before every prompt, without demonstrations.

    There is no retrieval: every prompt gets all facts in force, in the order of their edits, the
    newest next to the prompt. Where they do not all fit, the oldest are left out. Papers put one
    edit (or the edits of one case) into the context, as the protocol ``single`` does.

    Args:
        form: ``imagine``: "Imagine that <fact>" before the prompt (RippleEdits, KnowEdit).
            ``new_fact``: "New Fact: <fact>", then "Prompt: <prompt>" (EasyEdit).
        newest: Number of facts at most, the newest ones; ``None``: all in force.
        answer_room: See :class:`PromptingEditor`.

    Note:
        What a prompt says is taken up by models that learnt to read instructions. The embedded
        model was trained on single statements: 1 of 100 facts. An instruct model of 135 M answered
        8 of 12 facts with all twelve in its context; :class:`RAG`, which retrieves four, 12 of 12.
        With 20 in its context it answered 12 of them, through RAG 18.
    """

    def __init__(
        self,
        form: Literal["imagine", "new_fact"] = "imagine",
        newest: int | None = None,
        answer_room: int = 24,
    ) -> None:
        super().__init__(answer_room=answer_room)
        self.form = form
        self.newest = newest

    def require_arguments(self) -> None:
        """Check the arguments of this editor."""
        super().require_arguments()
        forms = ("imagine", "new_fact")
        self.require(self.form in forms, "form", " or ".join(forms), self.form)
        most = self.newest
        self.require(most is None or most >= 1, "newest", "1 or more, or null", most)

    def context(self, prompt: str, memory: FactMemory) -> Context:
        """Put the facts in force before a prompt, the newest last."""
        opening, asked = ("Imagine that ", "")
        if self.form == "new_fact":
            opening, asked = "New Fact: ", "Prompt: "
        kept = memory.facts if self.newest is None else memory.facts[-self.newest :]
        *older, last = [f"{opening}{fact.sentence}\n" for fact in kept]
        return Context(f"{last}{asked}{prompt}", older)
