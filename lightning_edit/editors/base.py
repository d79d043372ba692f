"""Editor base class: a LightningModule that turns a batch of requests into a weight delta."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from lightning_edit.distributed.one_process import ALONE
from lightning_edit.editors.bound_model import BoundModel
from lightning_edit.editors.checks import (
    require_finite_weights,
    require_nothing_in_force,
)
from lightning_edit.editors.history_hooks import HistoryHooks
from lightning_edit.editors.hypernetwork.checkpoint import EditorCheckpoint
from lightning_edit.editors.layer_defaults import LayerDefaults
from lightning_edit.editors.loop_steps import LoopSteps
from lightning_edit.editors.parts import EditorParts
from lightning_edit.editors.stages import Stages
from lightning_edit.editors.stronger import to_write_more
from lightning_edit.editors.unanswered import say_unanswered
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.exclusive import exactly, model_lock
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.protocols import Runtime
from lightning_edit.exceptions import (
    CheckpointError,
    ConfigError,
)
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Responder
from lightning_edit.models.chat_template import thinking_note
from lightning_edit.models.eval_mode import in_eval_mode
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.view import resolve
from lightning_edit.types import EditBatch, EditRequest

log = logging.getLogger(__name__)

_FINAL = """{base} is final, so that its name stands for one method; wrap it instead:

    from lightning_edit import {base}
    from lightning_edit.editors.wrappers.base import UpdateShaper

    class {new}(UpdateShaper):
        def transform(self, name, update):  # the update of one weight, by parameter name
            return update

    editor = {new}(editor={base}())

or override `edit` of a WrappedEditor to change the requests or the whole update."""


class Editor(HistoryHooks, EditorParts, BoundModel, LayerDefaults, Stages, LoopSteps, ABC):
    """Base class of all editors: requests in, weight deltas out.

    An editor is bound to one language model and turns batches of requests into deltas. It never
    changes the model: a :class:`~lightning_edit.edits.ledger.Ledger` commits or undoes a delta and
    notifies the editor through :meth:`on_history`.

    The language model is deliberately no submodule: checkpoints, optimisers and model summaries see
    only what the editor owns. Hyper-parameters are typed ``__init__`` arguments kept as attributes
    (a nested editor sees the outer editor's values in ``self.hparams``).

    Subclasses are either *families* (declared with ``family=True``, abstract) or final: to change a
    final editor, wrap it.
    """

    needs_statistics: ClassVar[bool] = False
    """Whether the editor needs key second moments (covariance) of the edited layers."""
    needs_subject: ClassVar[bool] = False
    """Whether every request must name its subject."""
    batched: ClassVar[bool] = True
    """Whether a batch is solved jointly; otherwise its requests are written one by one."""
    sequential: ClassVar[bool] = True
    """Whether the editor supports sequential (lifelong) editing of one model."""
    edits_weights: ClassVar[bool] = True
    """Whether the editor changes weights, so that its edits can be merged and exported."""
    both_forms: ClassVar[bool] = False
    """Whether one edit can be written for a chat template and for plain text (``chat="both"``)."""
    ends_answers: bool = True
    """Whether an answer can be written with its end (``end_answers``)."""
    no_strength: ClassVar[tuple[str, ...]] = ()
    """Settings that do not make it write more, though they do in other editors."""

    _family: ClassVar[bool] = True

    last_ledger: Ledger | None = None
    """Ledger of this editor's last run or handle, which may still have edits in force."""

    def __init_subclass__(cls, *, family: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__bases__:
            if issubclass(base, Editor) and not base._family:
                raise TypeError(_FINAL.format(base=base.__name__, new=cls.__name__))
        cls._family = family
        for name in ("edit", "edit_independent"):
            method = cls.__dict__.get(name)
            if method is not None and not getattr(method, "__isabstractmethod__", False):
                setattr(cls, name, exactly(method))

    def __init__(self) -> None:
        super().__init__()
        self._remembered: list[Delta] = []
        self._hosted = False  # while a wrapper binds it, which has said what there is to say

    # ------------------------------------------------------------------------------------ binding

    def bind(self, model: nn.Module, tokenizer: Any) -> "Editor":
        """Bind the editor to a language model and its tokenizer.

        Args:
            model: A Hugging Face language model. It is read and edited in eval mode, whichever
                mode it is in, and left in its own.
            tokenizer: Its fast tokenizer; or a
                :class:`~lightning_edit.models.prompt_encoder.PromptEncoder`, to edit through a chat
                template.

        Returns:
            The editor itself.

        Raises:
            ArchitectureError: If the editor cannot edit this kind of model.
            ConfigError: If an argument of the editor is not finite, or it cannot write one edit for
                chat and plain text.
            LedgerError: If its edits act at run time and some are in force.
            NotFiniteError: If a weight of the model is not finite.
        """
        self.check_arguments()
        require_nothing_in_force(self)
        view = resolve(model)
        self.require_kind(view)
        prompts = PromptEncoder.for_model(model, tokenizer)
        if len(prompts.forms) > 1 and not self.both_forms:
            able = sorted(cls.__name__ for cls in final_editors(Editor) if cls.both_forms)
            raise ConfigError(
                f"{type(self).__name__} writes an edit for one form of its prompt, so it cannot "
                'edit with chat="both" (--lm_chat both); use --lm_chat true or false, or one of '
                f"{', '.join(able)}"
            )
        if prompts.form.end_answers and not self.ends_answers:
            log.warning(
                "%s does not learn where an answer ends, so end_answers (--lm_end_answers) is off",
                type(self).__name__,
            )
            form = replace(prompts.form, end_answers=False)
            prompts = PromptEncoder.for_model(model, PromptEncoder(prompts.tokenizer, form))
        note = None if self._hosted else thinking_note(prompts.tokenizer, prompts.form)
        if note is not None:
            log.warning("%s: %s (docs/data.md, Models that think first)", type(self).__name__, note)
        require_finite_weights(model)
        self._prompts = prompts
        model_lock(model)  # made before anything looks at the model's attributes
        self._bound = (model, self._prompts.tokenizer, view)
        self._remembered = []
        self.chosen = {}
        with in_eval_mode(model):  # what is read here must be what the edited model reads
            self.on_bind()
        return self

    @classmethod
    def _finals(cls) -> "Iterator[type[Editor]]":
        """Yield all editors that are no family."""
        return final_editors(Editor)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        *args: Any,
        language_model: tuple[nn.Module, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a trained editor from a Lightning checkpoint.

        Args:
            checkpoint_path: The checkpoint. Called on a family or on ``Editor`` itself, the class
                is that of the checkpoint.
            *args: See ``LightningModule.load_from_checkpoint``.
            language_model: Model and tokenizer to bind it to; ``None``: :meth:`bind` does it later.
            **kwargs: See ``LightningModule.load_from_checkpoint``.

        Returns:
            The editor.

        Raises:
            CheckpointError: If the file holds no trained editor, such as the position of an edit
                run.
        """
        stored = EditorCheckpoint.read(Path(checkpoint_path))
        known = {kind.__name__: kind for kind in final_editors(Editor)}
        kind = known.get(stored.editor, cls) if cls._family else cls
        if stored.editor != kind.__name__:
            raise CheckpointError(
                f"{checkpoint_path} holds a trained {stored.editor}, not a {kind.__name__}; use "
                f"{stored.editor}.load_from_checkpoint, with its class imported"
            )
        load = super(Editor, kind).load_from_checkpoint
        editor = load(checkpoint_path, *args, **kwargs)
        return editor if language_model is None else editor.bind(*language_model)

    def on_bind(self) -> None:
        """Set up model-dependent state after binding, such as default layers and buffer shapes."""

    @property
    def edits_in_force(self) -> Sequence[Delta]:
        """Edits of this editor's last run or handle that are in force on the bound model."""
        ledger = self.last_ledger
        here = ledger is not None and self._bound is not None and ledger.model is self._bound[0]
        return ledger.in_force if ledger is not None and here else ()

    def place_language_model(self) -> None:
        """Move the language model to the editor's device, unless it is sharded over devices."""
        model = self.language_model
        if getattr(model, "hf_device_map", None) is None and model.device != self.device:
            model.to(self.device)

    # ------------------------------------------------------------------------------------ editing

    @abstractmethod
    def edit(self, batch: EditBatch) -> Delta:
        """Compute the weight update (delta) that writes a batch of requests into the model.

        The model is unchanged, bit for bit, when this returns.

        Args:
            batch: Requests and their token ids.

        Returns:
            The update.
        """

    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Compute one independent delta per request, each as a single edit of the current model.

        Families that can search for several requests at once override this; the results are the
        same. Here whole requests are dealt to the processes of the run.

        Args:
            batch: Requests and their token ids.

        Returns:
            One delta per request.
        """
        ranks = self.ranks
        # Inside its share a process works alone: nobody else is at the same request.
        self.work_with(ALONE)
        try:
            return ranks.deal(batch.split(), self.edit)
        finally:
            self.work_with(ranks)

    # ------------------------------------------------------------------------------------- asking

    def runtime(self) -> Runtime | None:
        """Return what installs this editor's edits, where they are no updates of weights.

        A ledger with a runtime commits deltas with ``state`` or ``prompts``, and hands it the list
        of edits in force after every commit, undo and replay. See docs/architecture.md, "Editors
        that act at run time".
        """
        return None

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Responder:
        """Return what is asked in place of the bare model, for scores and generated texts.

        Args:
            in_force: The edits in force, a live list: read it when a question is asked.
            batch_size: Rows per forward pass.
        """
        return ModelResponder(self.language_model, self.prompts, batch_size)

    def continuations(
        self, prompts: Sequence[str], max_new_tokens: int, in_force: Sequence[Delta]
    ) -> list[str]:
        """Generate greedy continuations of prompts, up to the end of the text.

        Args:
            prompts: Texts to continue.
            max_new_tokens: Maximum number of new tokens.
            in_force: The edits in force.
        """
        questions = [Question(prompt, max_new_tokens) for prompt in prompts]
        return self.responder(in_force).generate_until(questions, stop=())

    def say_unanswered(
        self,
        requests: Sequence[EditRequest],
        written: Sequence[Delta],
        in_force: Sequence[Delta],
        earlier: Sequence[EditRequest] = (),
    ) -> frozenset[str] | None:
        """Warn of requests in force whose answer the model does not give, with what to turn.

        The answers are scored once, by teacher forcing. Edits that only put texts before prompts
        are not looked at: they are written down in milliseconds, and reading all of them takes
        minutes.

        Args:
            requests: Requests that were written last; none after an undo.
            written: Their deltas.
            in_force: All edits in force.
            earlier: Requests in force that were answered before.

        Returns:
            Ids of the requests whose answer the model does not give; ``None``: not looked at.
        """
        if all(one.prompts and not one.state for one in written or in_force):
            return None
        return say_unanswered(self, requests, written, in_force, earlier)

    def advice_on(self, missing: Set[str], written: Sequence[Delta]) -> str:
        """Return what to turn where the model does not give the answers of edits in force.

        Args:
            missing: Ids of these edits.
            written: Their deltas, and others.
        """
        return to_write_more(self)

    def edit_model(
        self,
        model: nn.Module,
        tokenizer: Any,
        requests: EditRequest | Mapping[str, Any] | Sequence[EditRequest | Mapping[str, Any]] | Any,
        seed: int = 0,
        chat: bool | Literal["both"] = False,
        system: str | None = None,
        end_answers: bool = False,
    ) -> EditedModel:
        """Edit a Hugging Face model directly, without a Trainer.

        Args:
            model: A Hugging Face language model; it is changed in place until ``undo``.
            tokenizer: Its fast tokenizer, or a prompt encoder.
            requests: One or more requests, or rows with at least ``prompt`` and ``target``:
                dictionaries, a ``datasets.Dataset``, a ``pandas.DataFrame``.
            seed: Seed of all randomness in the edit.
            chat: Edit and ask through the model's chat template: prompts are the user's turn.
                ``"both"``: the edit is written for the template and for plain text.
            system: System message of the chat.
            end_answers: Write each answer with its end, so that the model stops after it. A vector
                that is searched at one token (ROME, MEMIT, GRACE) may not reach that far: look at
                what is generated.

        Returns:
            A handle with ``generate``, ``edit`` (more requests) and ``undo``. A warning names the
            requests whose answer the model does not give although they are in force.

        Raises:
            DataError: If a request is not valid.
        """
        if chat or system is not None or end_answers:
            given = PromptEncoder.of(tokenizer)
            ends = end_answers or given.form.end_answers
            form = replace(
                given.form,
                chat=chat or given.form.chat,
                system=given.form.system if system is None else system,
                end_answers=ends,
            )
            tokenizer = PromptEncoder(given.tokenizer, form)
        self.bind(model, tokenizer)
        edited = EditedModel(self)
        self.last_ledger = edited.ledger  # before the edit, which may look at those in force
        return edited.edit(requests, seed)

    def on_stream(self, datamodule: Any) -> None:
        """Take what the editor needs of the data, before a stream of its edits begins.

        Args:
            datamodule: Data module of the edits, set up.
        """


def final_editors(base: type[Any]) -> Iterator[type[Editor]]:
    """Yield the concrete editor classes below a base class, without the abstract families.

    Args:
        base: The base class, such as ``Editor``.
    """
    for child in base.__subclasses__():
        yield from final_editors(child)
        if not child._family:
            yield child
