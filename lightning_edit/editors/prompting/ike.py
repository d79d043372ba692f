"""IKE: Zheng et al., Can We Edit Factual Knowledge by In-Context Learning?, EMNLP 2023."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.editors.prompting.context import Context
from lightning_edit.editors.prompting.demonstrations import (
    Corpus,
    Record,
    read_requests_of,
    records_of,
)
from lightning_edit.editors.prompting.facts import FactMemory
from lightning_edit.exceptions import CheckpointError, ConfigError, DataError
from lightning_edit.storage.jsonl import read_rows, write_rows
from lightning_edit.types import EditRequest

_log = logging.getLogger(__name__)
_FILE = "demonstrations.jsonl"


class IKE(PromptingEditor):
    """In-context knowledge editing: demonstrations of other edits, then the new fact.

    Demonstrations teach when to apply a fact and when to ignore it: they copy a fact, update
    another wording, or retain a neighbour's answer, 1 : 3 : 4. Those whose facts are most similar
    to the new one stand nearest to it; behind them the new fact is copied, and the prompt asked
    below the new fact once more. Of several edits in force the one whose prompt is nearest to the
    prompt gives the new fact; there is no threshold.

    Args:
        demonstrations: Corpus of other edits, with rephrasings and locality probes: a data file of
            any known form, or requests. ``None``: the training split of the data module that is
            edited. Records without the two are left out, as is, in the order ``paper``, the edited
            prompt itself.
        k: Demonstrations before the new fact, at most (paper: 32; EasyEdit: 16).
        order: ``paper``. ``easyedit``: the ``k`` nearest demonstrations of any type, the most
            similar one first, without a copy of the new fact.
        seed: Seed of the types and statements, for every new fact.
        encoder: See :class:`PromptingEditor`; the paper and EasyEdit take all-MiniLM-L6-v2.
        answer_room: See :class:`PromptingEditor`.

    Note:
        What a prompt says is taken up by models that learnt to read instructions: an instruct model
        of 135 M answered 8 of 8 facts, the embedded one, trained on single statements and with room
        for one demonstration in its 128 tokens, 2 of 100.
    """

    arguments_in_parts: ClassVar[tuple[str, ...]] = ("demonstrations",)

    def __init__(
        self,
        demonstrations: str | list[EditRequest] | None = None,
        k: int = 32,
        order: Literal["paper", "easyedit"] = "paper",
        seed: int = 0,
        encoder: str = "lexical",
        answer_room: int = 24,
    ) -> None:
        super().__init__(encoder, answer_room)
        self.demonstrations = demonstrations
        self.k = k
        self.order = order
        self.seed = seed
        self._records: list[Record] = []
        self._corpus: Corpus | None = None
        self._chosen: dict[str, list[str]] = {}

    def require_arguments(self) -> None:
        """Check the arguments of this editor."""
        super().require_arguments()
        self.require(self.k >= 1, "k", "1 or more", self.k)
        orders = ("paper", "easyedit")
        self.require(self.order in orders, "order", " or ".join(orders), self.order)

    def on_bind(self) -> None:
        """Make memory and corpus anew for this model."""
        super().on_bind()
        self._corpus, self._chosen = None, {}

    def on_stream(self, datamodule: Any) -> None:
        """Take the training split as demonstrations, unless others were given.

        Args:
            datamodule: Data module of the edits.
        """
        if self.demonstrations is None and isinstance(datamodule, EditDataModule):
            name = f"the training split of {type(datamodule).__name__}"
            self.take_demonstrations(datamodule.requests("train"), name)

    def take_demonstrations(self, requests: Sequence[EditRequest], source: str) -> None:
        """Take edits as the corpus of demonstrations.

        Args:
            requests: Edits that are not those to be made.
            source: Where they are from, for messages.

        Raises:
            DataError: If no request has both a rephrasing and a locality probe.
        """
        self._records, others = records_of(requests, source)
        self._corpus, self._chosen = None, {}
        if others:
            _log.warning(
                "%s: %d of %d records have no rephrasing or no locality probe, and are left out of "
                "the demonstrations",
                source,
                others,
                others + len(self._records),
            )

    @property
    def corpus(self) -> Corpus:
        """The corpus of demonstrations.

        Raises:
            ConfigError: If there is none.
        """
        if self._corpus is None:
            self._load()
            self._corpus = Corpus(self._records, self._make_index)
        return self._corpus

    def _load(self) -> None:
        """Read the corpus that was given, unless there is one."""
        given = self.demonstrations
        if self._records:
            return
        if given is None:
            raise ConfigError(
                "IKE has no demonstrations: give `demonstrations` (--model.demonstrations FILE, a "
                "data file with rephrasings and locality probes), or run it on a data module with "
                "a training split; ICE edits in context without any"
            )
        listed = read_requests_of(given) if isinstance(given, str) else given
        self.take_demonstrations(listed, given if isinstance(given, str) else "`demonstrations`")

    def context(self, prompt: str, memory: FactMemory) -> Context:
        """Put demonstrations and the nearest fact before a prompt."""
        (fact,) = memory.nearest(prompt, 1)
        essential = f"New Fact: {fact.sentence}\nPrompt: {prompt}"
        key = fact.to_text()
        if self.order == "easyedit":
            if key not in self._chosen:
                self._chosen[key] = self.corpus.by_similarity(fact, self.k)
            return Context(essential, self._chosen[key], least_last=True)
        if key not in self._chosen:
            copied = f"New Fact: {fact.sentence}\nPrompt: {fact.sentence}\n\n"
            self._chosen[key] = [*self.corpus.by_paper(fact, self.k, self.seed), copied]
        return Context(essential, self._chosen[key])

    # -------------------------------------------------------------------------------------- parts

    def save_parts(self, folder: Path) -> None:
        """Save the corpus of demonstrations as JSON Lines.

        Args:
            folder: Existing folder.
        """
        self._load()
        write_rows(folder / _FILE, (record.to_row() for record in self._records))

    def load_parts(self, folder: Path) -> None:
        """Load the corpus of :meth:`save_parts`, in place of the one that was given.

        Args:
            folder: The folder.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        path = folder / _FILE
        try:
            self._records = [Record.from_row(row) for row in read_rows(path)]
        except (OSError, DataError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read as demonstrations ({error}); export the editor again, or "
                "restore the folder as a whole"
            ) from error
        self._corpus, self._chosen = None, {}
