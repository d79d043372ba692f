"""Edited model: edit, generate and undo in Python, without a run folder."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edit_loop import find
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.exclusive import exclusive
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.protocols import BoundEditor, Conditions
from lightning_edit.edits.request_rows import as_requests
from lightning_edit.exceptions import DataError, EditRefusedError, LedgerError
from lightning_edit.functional.visible import visible
from lightning_edit.models.view import ModelView
from lightning_edit.types import EditRequest

log = logging.getLogger(__name__)

#: Most earlier edits that are looked at again after a later one.
_LOOKED_AT = 8


class EditedModel:
    """Language model with its edits: edit, generate, undo.

    Requests that a batched editor writes in one call are one commit: they are taken back together.

    Args:
        editor: An editor bound to the model.
    """

    #: Requests whose answer the model gave when it was last asked for it.
    _answered: Sequence[EditRequest] = ()

    def __init__(self, editor: BoundEditor) -> None:
        self.editor = editor
        self.model = editor.language_model
        self.tokenizer = editor.tokenizer
        self.ledger = Ledger(self.model, editor, runtime=editor.runtime())
        self._named = 0

    def take(self, edits: Sequence[tuple[Delta, Sequence[EditRequest]]]) -> "EditedModel":
        """Put edits that were made elsewhere into force, all of them or none.

        Args:
            edits: Deltas in the order of their commits, each with its requests.

        Returns:
            This handle.

        Raises:
            LedgerError: If there are edits in force already, or a delta does not fit.
        """
        with exclusive(self.model):
            self.ledger.take(edits)
        self._named = next_number(self.ledger.request_ids)
        return self

    @staticmethod
    def open(run: str | Path, **options: Any) -> "EditedModel":
        """Open the edited model of a run folder.

        Args:
            run: Folder that ``lightning-edit edit`` or ``EditTrainer.edit`` wrote.
            **options: ``editor`` for further edits, and ``language_model``, the unedited model and
                its tokenizer; by default both are as in the run. See
                :func:`lightning_edit.open_run`.

        Returns:
            A handle that also has ``report``, ``results`` and ``ids``; its ``edit``, ``undo`` and
            ``redo`` are written to the run's journal.
        """
        # Runs are of a higher room, which the table of public names loads when it is asked.
        from lightning_edit import open_run

        opened: EditedModel = open_run(run, **options)
        return opened

    def export(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Export the edits in force with their editor, to load with ``lightning_edit.load_edited``.

        Args:
            folder: Folder to write, complete or not at all.
            overwrite: Whether to replace an earlier export there.

        Returns:
            The folder: safetensors, JSON, and a model card.

        Raises:
            ExportError: If no edit is in force, or something else lies there.
            ConfigError: If an argument of the editor is no plain value.
        """
        # Exports are of a higher room, as runs are.
        from lightning_edit import export_edited

        written: Path = export_edited(self, Path(folder), overwrite)
        return written

    def attribute(
        self, facts: Any, top: int | None = None, by: str = "auto", measure: int = 0
    ) -> list[Any]:
        """Attribute the change of facts to the edits in force: which edit moved them, and where.

        Example::

            (why,) = edited.attribute(("The capital of Norway is", "Oslo"))
            print(why.sentence())  # moved -3.12 nats, most by edit edit-17, in block 5 (-2.87)

        Args:
            facts: A fact or several: pairs of prompt and answer, triples with the subject, or
                mappings with ``prompt``, ``answer`` and perhaps ``subject``.
            top: Number of edits that are listed for each fact; ``None``: all.
            by: ``auto``, ``columns`` or ``undo``, see :func:`lightning_edit.attribute_edits`.
            measure: Number of commits of each fact that are also measured by leaving them out.

        Returns:
            One :class:`~lightning_edit.evaluation.attributed.FactAttribution` a fact.

        Raises:
            LedgerError: If no edit is in force.
            ConfigError: If ``by`` is ``columns`` and an update is no sum over its requests.
            DataError: If a fact is not valid.
        """
        # Attribution is of a higher room, as exports are.
        from lightning_edit import attribute_edits

        found: list[Any] = attribute_edits(self, facts, top, by, measure)
        return found

    @staticmethod
    def of(model: Any, tokenizer: Any, run: str | Path | None = None) -> "EditedModel":
        """Return a handle without an editor, for deltas that were made elsewhere.

        Args:
            model: The unedited language model.
            tokenizer: Its fast tokenizer, or a prompt encoder.
            run: New folder for a journal on disk, which ``lightning-edit undo``, ``redo`` and
                ``export`` read; ``None``: the edits are in memory only.

        Returns:
            The handle; see :meth:`commit`.

        Raises:
            LedgerError: If the folder holds a run already.
        """
        # As in `open`.
        from lightning_edit import hold_model

        held: EditedModel = hold_model(model, tokenizer, run)
        return held

    def commit(
        self,
        delta: Delta,
        requests: EditRequest | Mapping[str, Any] | Sequence[EditRequest | Mapping[str, Any]] = (),
    ) -> "EditedModel":
        """Commit a delta that was made elsewhere, such as that of :meth:`Delta.between`.

        Args:
            delta: The update of the model's weights.
            requests: The facts that it teaches, as for :meth:`edit`; their ids become those of the
                edit. Without any the delta's own ids stay.

        Returns:
            This handle.

        Raises:
            LedgerError: If an id is in force already.
            DataError: If a request is not valid.
        """
        listed = as_requests(requests, first=self._named, may_be_empty=True)
        self._named += len(listed)
        if listed:
            # Columns are of the delta's own requests, in their order.
            columns = delta.columns if len(listed) == len(delta.request_ids) else {}
            ids = tuple(request.id for request in listed)
            delta = replace(delta, request_ids=ids, columns=columns)
        with exclusive(self.model):
            self.ledger.commit(delta, listed)
        return self

    def edit(
        self,
        requests: EditRequest | Mapping[str, Any] | Sequence[EditRequest | Mapping[str, Any]] | Any,
        seed: int = 0,
        conditions: Conditions | None = None,
    ) -> "EditedModel":
        """Write further requests on top of the edits so far, all of them or none.

        A warning names requests whose answer the model does not give afterwards, teacher forced,
        and of earlier ones, of which some are looked at again, those whose answer was lost.

        Args:
            requests: One or more requests, or rows with at least ``prompt`` and ``target``:
                dictionaries, a ``datasets.Dataset``, a ``pandas.DataFrame``.
            seed: Seed of everything random in the edit.
            conditions: What every commit must meet, a :class:`lightning_edit.Transaction`. Locality
                and perplexity are compared with the model before the commit.

        Returns:
            This handle.

        Raises:
            DataError: If there are no requests, or one is not valid.
            ArchitectureError: If an adapter was put on a projection since the editor was bound.
            EditRefusedError: If a commit misses a condition; nothing of the call is left then.
        """
        self._require_own_editor()
        # Names are not used again after an undo: `edit-0` is one edit for the life of this handle.
        listed = as_requests(requests, first=self._named)
        self._named += len(listed)
        batch = encode_batch(self.editor.prompts, listed, seed)
        written: list[Delta] = []
        with exclusive(self.model):  # another thread waits until these edits are all written
            if isinstance(view := getattr(self.editor, "view", None), ModelView):
                view.require_plain()
            try:
                for part, delta in find(self.editor, batch):
                    self._commit(delta, part.requests, conditions)
                    written.append(delta)
                self._say_unanswered(listed, written)
            except BaseException:
                self.ledger.rollback(len(written))
                raise
        return self

    def _say_unanswered(self, requests: Sequence[EditRequest], written: Sequence[Delta]) -> None:
        """Have the editor look at answers; an error here undoes no edit, an interruption does."""
        look = getattr(self.editor, "say_unanswered", None)  # of editors of this library
        if look is None:
            return
        in_force = self.ledger.in_force
        ids = {name for delta in in_force for name in delta.request_ids}
        new = {request.prompt for request in requests}  # such a fact is replaced, not lost
        answered = [one for one in self._answered if one.id in ids and one.prompt not in new]
        if not requests and not answered:
            return
        step = max(1, math.ceil(len(answered) / _LOOKED_AT))
        try:
            missing = look(requests, written, in_force, answered[::step])
        except Exception as error:  # noqa: BLE001  # such as too little memory for the scores
            log.warning("whether the edits are answered could not be looked at: %r", error)
            return
        if missing is not None:
            self._answered = [one for one in (*answered, *requests) if one.id not in missing]

    def _commit(
        self, delta: Delta, requests: Sequence[EditRequest], conditions: Conditions | None
    ) -> None:
        if conditions is None:
            self.ledger.commit(delta, requests)
            return
        check = conditions.before(self.editor, self.ledger.in_force, requests)
        with self.ledger.staged(delta, requests) as trial:
            if reason := check.refusal(delta):
                listed = ", ".join(request.id for request in requests[:4])
                raise EditRefusedError(visible(f"the edit of {listed} was refused: {reason}"))
            trial.commit()

    def generate(self, prompt: str, max_new_tokens: int = 16) -> str:
        """Generate a greedy continuation of a prompt, up to EOS.

        Args:
            prompt: Text to continue; with a chat format the user's message.
            max_new_tokens: Maximum number of new tokens.

        Returns:
            The continuation, without the prompt.

        Raises:
            DataError: If the prompt is not text or has more tokens than the model takes, or no
                token may be generated.
        """
        require_question(prompt, max_new_tokens)
        self._require_own_editor()
        in_force = self.ledger.in_force
        return self.editor.continuations([prompt], max_new_tokens, in_force)[0]

    def responder(self, batch_size: int = 64) -> Any:
        """Return what answers in place of the bare model: scores and texts with the edits in force.

        Args:
            batch_size: Rows per forward pass.

        Returns:
            A :class:`~lightning_edit.inference.responder.Responder`; it follows undo and redo.
        """
        self._require_own_editor()
        return self.editor.responder(self.ledger.in_force, batch_size)

    def _require_own_editor(self) -> None:
        if self.editor.language_model is not self.model:
            raise LedgerError(
                f"this {type(self.editor).__name__} has been bound to another model since, so it "
                "can no longer edit or ask this one; make an editor object for each model"
            )

    def undo(self, ids: str | Sequence[str] | None = None) -> "EditedModel":
        """Undo edits; after undoing all of them the model is bit-identical to the original.

        Edits that stay were learnt beside those that go: answers of up to eight of them are scored,
        and a warning names those that were lost.

        Args:
            ids: Request ids to undo; ``None``: all.

        Returns:
            This handle.
        """
        with exclusive(self.model):
            before = len(self.ledger.in_force)
            self.ledger.undo(self.ledger.request_ids if ids is None else listed_ids(ids))
            if 0 < len(self.ledger.in_force) < before and self.editor.language_model is self.model:
                self._say_unanswered((), ())
        return self

    def redo(self, ids: str | Sequence[str] | None = None) -> "EditedModel":
        """Redo undone edits: put them back into force at their old positions.

        Args:
            ids: Requests that :meth:`undo` undid; ``None``: all.

        Returns:
            This handle; the model has the bits that it had with these edits.
        """
        with exclusive(self.model):
            back = self.ledger.undone_ids if ids is None else listed_ids(ids)
            self.ledger.redo(back)
        return self


def next_number(ids: Iterable[str]) -> int:
    """Return the first number ``n`` such that no later ``edit-n`` is among some request ids."""
    numbers = [name.removeprefix("edit-") for name in ids if name.startswith("edit-")]
    return 1 + max([int(number) for number in numbers if number.isdecimal()], default=-1)


def require_question(prompt: object, max_new_tokens: int) -> None:
    """Check what is to be continued.

    Args:
        prompt: Text to continue.
        max_new_tokens: Maximum number of new tokens.

    Raises:
        DataError: If the prompt is not text or is empty, or no token may be generated.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"the prompt must be text to continue, one at a time; got {prompt!r}")
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise DataError(f"max_new_tokens must be a whole number from 1 on; got {max_new_tokens!r}")


def listed_ids(ids: str | Sequence[str]) -> Sequence[str]:
    """Return a list of ids; one id is a list of one, not of its letters."""
    return [ids] if isinstance(ids, str) else ids
