"""Base class of text editors: the new facts are put in front of a prompt when it is asked."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from lightning_edit.editors.base import Editor
from lightning_edit.editors.prompting.context import Context, ContextUse, Room, Told
from lightning_edit.editors.prompting.facts import Fact, FactMemory
from lightning_edit.editors.prompting.responder import PromptingResponder
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.inference.responder import Responder
from lightning_edit.inference.retrieval import index_maker
from lightning_edit.types import EditBatch, EditRequest

_log = logging.getLogger(__name__)


class PromptingEditor(Editor, family=True):
    """Family of editors that put texts in front of prompts (in-context editing).

    An edit is the text of its fact. What stands before a prompt is chosen for that prompt from the
    edits in force, whatever answer is scored or generated behind it; running text is read as it is.
    With no edit in force, and before a prompt that the method leaves alone, the model is asked the
    prompt itself. With a chat template the texts are part of the user's turn.

    Texts that do not fit into the model's positions are left out, those that say least first, never
    the prompt or the new fact; a warning says so once, ``context_use`` counts them, and ``info`` of
    an edit has the figures of its own prompt. A prompt before which not even the fact fits is asked
    as it is, and counted.

    Args:
        encoder: What finds the facts (and demonstrations) near a prompt. ``lexical``: how many of
            the fact's character sequences stand in the prompt. ``hidden``: mean hidden states of
            the language model itself. Else a model of ``sentence-transformers``, by folder or name
            (extra ``retrieval``).
        answer_room: Positions that are kept for an answer; at most a quarter of all.
    """

    edits_weights: ClassVar[bool] = False
    batched: ClassVar[bool] = False
    both_forms: ClassVar[bool] = True  # a text acts in either form
    ends_answers = False
    architectures: ClassVar[tuple[str, ...]] = ("decoder-only", "encoder-decoder")

    def __init__(self, encoder: str = "lexical", answer_room: int = 24) -> None:
        super().__init__()
        self.encoder = encoder
        self.answer_room = answer_room
        self.context_use = ContextUse()

    def on_bind(self) -> None:
        """Make the memory of facts, empty, and measure the model's room.

        Raises:
            ConfigError: If an argument is out of range.
        """
        self.require_arguments()
        self._make_index = index_maker(self.encoder, self.language_model, self.prompts)
        self.room = Room(self.prompts, self.answer_room)
        self.context_use = ContextUse()
        self._told: dict[str, Told | None] = {}
        self._warned: set[str] = set()
        self.memory = self.new_memory()
        self.memory.on_change(self._told.clear)

    def require_arguments(self) -> None:
        """Check the arguments of this editor.

        Raises:
            ConfigError: If one is out of range.
        """
        self.require(self.answer_room >= 1, "answer_room", "1 or more", self.answer_room)
        self.require(bool(self.encoder), "encoder", "lexical, hidden or a model", self.encoder)

    def require(self, condition: bool, name: str, expected: str, got: object) -> None:
        """Raise an error about an argument unless a condition holds.

        Raises:
            ConfigError: With the argument, the expected and the given value.
        """
        if not condition:
            raise ConfigError(f"`{name}` of {type(self).__name__} must be {expected}; got {got!r}")

    def new_memory(self) -> FactMemory:
        """Return an empty memory of facts; by default they are found by their prompts."""
        return FactMemory(self._make_index)

    @abstractmethod
    def context(self, prompt: str, memory: FactMemory) -> Context | None:
        """Choose what stands before a prompt.

        Args:
            prompt: The prompt, without a BOS that it is written with.
            memory: Facts of the edits in force, at least one.

        Returns:
            The context; ``None``: the prompt is asked as it is.
        """

    # ------------------------------------------------------------------------------------ editing

    def edit(self, batch: EditBatch) -> Delta:
        """Return the texts of a batch of requests, and how its prompts are asked with them alone.

        Args:
            batch: Requests and their token ids.

        Returns:
            The facts; ``info`` has for each request the number of optional texts before its prompt
            (``texts``), of those left out for room (``texts_cut``), and the tokens of it all.

        Raises:
            DataError: If a fact does not fit into the model's positions before its own prompt.
        """
        self._require_bound()
        prompts = {one.id: Fact.of(one).to_text() for one in batch.requests}
        told = [self._told_alone(one, prompts[one.id]) for one in batch.requests]
        info = {
            "texts": [one.texts for one in told],
            "texts_cut": [one.cut for one in told],
            "context_tokens": [one.tokens for one in told],
        }
        return Delta(batch.ids, prompts=prompts, info=info)

    def _told_alone(self, request: EditRequest, fact: str) -> Told:
        memory = self.new_memory()
        memory.install([Delta((request.id,), prompts={request.id: fact})])
        prompt = self._without_bos(request.prompt)[1]
        context = self.context(prompt, memory)
        found = self.room.fit(Context(prompt) if context is None else context)
        if found is None:
            raise DataError(
                f"request {request.id}: its new fact does not fit before its own prompt: the model "
                f"takes {self.room.positions} tokens, of which {self.room.most} may be "
                "context and prompt; shorten the prompt, lower `answer_room`, or edit weights"
            )
        return found

    # ------------------------------------------------------------------------------------- asking

    def runtime(self) -> FactMemory:
        """Return the memory of facts, which the ledger fills."""
        self._require_bound()
        return self.memory

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Responder:
        """Return what puts the texts before prompts and asks the model.

        Args:
            in_force: The edits in force; the memory that the ledger fills is what is read.
            batch_size: Rows per forward pass.
        """
        base = super().responder(in_force, batch_size)
        return PromptingResponder(base, self.told_prompt, self.room.tokens)

    def told_prompt(self, prompt: str, answer: str = "", separator: str | None = None) -> str:
        """Return a prompt as it is asked, with what stands before it.

        Args:
            prompt: The prompt.
            answer: An answer that is scored. It matters only where it is longer than the positions
                kept for it and does not fit: then more texts are left out.
            separator: Text between prompt and answer; ``None``: by rule.
        """
        if not self.memory.facts:
            return prompt
        if prompt not in self._told:
            self._told[prompt] = self._count(prompt, self._fit(prompt))
        told = self._told[prompt]
        if told is None:
            return prompt
        left = self.room.left_for(told, answer, separator) if answer else None
        if left is not None:
            shorter = self._fit(prompt, left)
            self._warn("the answer", f"the answer {answer[:40]!r}… leaves less room than usual")
            return prompt if shorter is None else shorter.prompt
        return told.prompt

    def _fit(self, prompt: str, most: int | None = None) -> Told | None:
        """Return a prompt with its context; itself where the method leaves it alone."""
        bos, bare = self._without_bos(prompt)
        context = self.context(bare, self.memory)
        if context is None:
            return Told(prompt, 0, 0, self.room.tokens(prompt))
        room = self.room.most if most is None else most
        found = self.room.fit(context, room - 1 if bos and room is not None else room)
        return replace(found, prompt=bos + found.prompt) if found is not None and bos else found

    def _without_bos(self, prompt: str) -> tuple[str, str]:
        """Split a BOS off a prompt that is written with one: it stays in front of everything."""
        bos = self.tokenizer.bos_token
        if bos and prompt.startswith(bos) and not self.prompts.form.chat:
            return bos, prompt[len(bos) :]
        return "", prompt

    def _count(self, prompt: str, told: Told | None) -> Told | None:
        use, positions = self.context_use, self.room.positions
        if told is None:
            use.unfit += 1
            self._warn(
                "unfit",
                f"the model takes {positions} tokens, and the new fact does not fit before the "
                f"prompt {prompt[:60]!r}…, which is asked as if there were no edit",
            )
        elif told.prompt != prompt:
            use.told += 1
            use.cut += told.cut > 0
            use.texts += told.texts
            use.texts_cut += told.cut
            if told.cut:
                self._warn(
                    "cut",
                    f"the model takes {positions} tokens, so {told.texts} of "
                    f"{told.texts + told.cut} texts stand before the prompt {prompt[:60]!r}…",
                )
        return told

    def _warn(self, kind: str, message: str) -> None:
        """Warn once a binding of each kind of loss; ``context_use`` has the counts."""
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning(
                "%s: %s. Further prompts are counted in `context_use`",
                type(self).__name__,
                message,
            )
