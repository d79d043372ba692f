"""Wrapper base classes: editors around a host editor that transform its updates.

A wrapper is an editor itself, so wrappers nest: ``RECT(PRUNE(MEMIT()))``.
"""

from abc import abstractmethod
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any, ClassVar

from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.memit import MEMIT
from lightning_edit.editors.stronger import to_write_more
from lightning_edit.edits.columns import LEFT_OUT
from lightning_edit.edits.delta import Delta, WeightUpdate
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.edits.protocols import Runtime
from lightning_edit.inference.responder import Responder
from lightning_edit.models.view import ModelView
from lightning_edit.types import EditBatch

#: Flags that an instance copies from its host; the class has those of the default host.
_HOST_FLAGS = (
    "needs_statistics",
    "needs_subject",
    "batched",
    "sequential",
    "architectures",
    "stacks",
    "decoder_only_because",
)


class WrappedEditor(Editor, family=True):
    """Family of wrappers around a host editor, with the host's flags, binding and history.

    The host is a submodule: its buffers are part of the wrapper's checkpoints. It is bound together
    with the wrapper and notified of every commit and undo, with the delta that was really written.

    Args:
        editor: The host; ``None``: the class's :attr:`default_host` with its defaults.

    Raises:
        ValueError: If the host acts at run time, so that there is no weight update to transform.
    """

    needs_statistics: ClassVar[bool] = MEMIT.needs_statistics
    needs_subject: ClassVar[bool] = MEMIT.needs_subject
    default_host: ClassVar[type[Editor]] = MEMIT
    """Host editor class when none is given."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "default_host" in cls.__dict__:
            for flag in _HOST_FLAGS:
                if flag not in cls.__dict__:
                    setattr(cls, flag, getattr(cls.default_host, flag))

    def __init__(self, editor: Editor | None = None) -> None:
        super().__init__()
        host = self.default_host() if editor is None else editor
        if not host.edits_weights:
            raise ValueError(
                f"{type(self).__name__} works on updates of weights, but {type(host).__name__} "
                "acts at run time; give it a host whose `edits_weights` is true, such as MEMIT"
            )
        self.editor = host
        for flag in _HOST_FLAGS:
            setattr(self, flag, getattr(host, flag))

    def on_bind(self) -> None:
        """Bind the host editor to the same model."""
        self.editor._hosted = True
        try:
            self.editor.bind(self.language_model, self.prompts)
        finally:
            self.editor._hosted = False
        self._prompts = self.editor.prompts  # what the host does not learn, no batch asks of it

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Pass the edits in force on to the host."""
        self.editor.on_history(in_force, change)

    def runtime(self) -> Runtime | None:
        """Return the host's runtime."""
        return self.editor.runtime()

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Responder:
        """Return the host's responder."""
        return self.editor.responder(in_force, batch_size)

    def advice_on(self, missing: Set[str], written: Sequence[Delta]) -> str:
        """Return what to turn: what the host knows of these edits, else the settings of both."""
        said = self.editor.advice_on(missing, written)
        return to_write_more(self) if said == to_write_more(self.editor) else said

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layers of the default host."""
        return cls.default_host.default_layers(num_blocks)

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: that of the default host."""
        return cls.default_host.memory_bytes(view, layers)


class UpdateShaper(WrappedEditor, family=True):
    """Family of wrappers that transform a host's update of each weight after the solve.

    Note:
        A batch of a host that writes one request after another (``batched`` is false) is
        transformed once, as the single update that it is.
    """

    both_forms: ClassVar[bool] = True  # if the host's is, which is asked when it is bound
    scales_columns: ClassVar[bool] = False
    """Whether a transformed update is the host's sum over requests, each column times a number."""

    @abstractmethod
    def transform(self, name: str, update: WeightUpdate) -> WeightUpdate:
        """Transform the host's update of one weight.

        Args:
            name: The parameter, which still has its value from before the update.
            update: The host's update of it.
        """

    def edit(self, batch: EditBatch) -> Delta:
        """Compute the host's update of a batch, and transform it.

        Args:
            batch: Requests and their token ids.

        Returns:
            The transformed update, with the host's own ``info`` and history.
        """
        return self._shape_delta(self.editor.edit(batch))

    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Compute one transformed delta per request, with the host's own batched search.

        Args:
            batch: Requests and their token ids.
        """
        return [self._shape_delta(delta) for delta in self.editor.edit_independent(batch)]

    def _shape_delta(self, delta: Delta) -> Delta:
        weights = {name: self.transform(name, update) for name, update in delta.weights.items()}
        columns = {
            name: owners
            for name, owners in delta.columns.items()
            if self.scales_columns or weights[name] is delta.weights[name]
        }
        # What a solve without a request would give is known of the host's own update only.
        other = {name for name in weights if weights[name] is not delta.weights[name]}
        history = {
            name: value
            for name, value in delta.history.items()
            if not (name.startswith(LEFT_OUT) and name.removeprefix(LEFT_OUT) in other)
        }
        return replace(delta, weights=weights, columns=columns, history=history)
