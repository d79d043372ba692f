"""Editors around editors: bind, flags and history of any host, with something done to its edits.

A wrapper is an editor itself, so wrappers nest: ``RECT(PRUNE(MEMIT()))``.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.memit import MEMIT
from lightning_edit.edits.delta import Delta, WeightUpdate
from lightning_edit.models.view import ModelView
from lightning_edit.types import EditBatch

#: Flags that an instance takes over from its host; the class has those of the default host.
_FLAGS = (
    "needs_statistics",
    "needs_subject",
    "batched",
    "sequential",
    "architectures",
    "decoder_only_because",
)


class WrappedEditor(Editor, family=True):
    """Family of editors that use another editor, their host, and keep nothing of it out of use.

    The host is a submodule: its buffers stand in the wrapper's checkpoints. It is bound together
    with the wrapper and told of every commit and undo, with the delta that was really written.

    Args:
        editor: The host; ``None``: the class's :attr:`default_host` with its defaults.

    Raises:
        ValueError: If the host acts at run time, so that there is no update of weights to work on.
    """

    needs_statistics: ClassVar[bool] = MEMIT.needs_statistics
    needs_subject: ClassVar[bool] = MEMIT.needs_subject
    default_host: ClassVar[type[Editor]] = MEMIT
    """The host when none is given."""

    def __init__(self, editor: Editor | None = None) -> None:
        super().__init__()
        host = self.default_host() if editor is None else editor
        if not host.edits_weights:
            raise ValueError(
                f"{type(self).__name__} works on updates of weights, but {type(host).__name__} "
                "acts at run time; give it a host whose `edits_weights` is true, such as MEMIT"
            )
        self.editor = host
        for flag in _FLAGS:
            setattr(self, flag, getattr(host, flag))

    def on_bind(self) -> None:
        """Bind the host to the same model."""
        self.editor.bind(self.language_model, self.tokenizer)

    def remember(self, delta: Delta) -> None:
        """Pass a committed delta on to the host."""
        self.editor.remember(delta)

    def forget(self, delta: Delta) -> None:
        """Pass an undone delta on to the host."""
        self.editor.forget(delta)

    def recall(self, delta: Delta) -> None:
        """Pass on a delta whose history a checkpoint has restored."""
        self.editor.recall(delta)

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default host's blocks."""
        return cls.default_host.default_layers(num_blocks)

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Return the default host's estimate."""
        return cls.default_host.memory_bytes(view, layers)


class UpdateShaper(WrappedEditor, family=True):
    """Family of wrappers that change a host's update of each weight after it was found.

    Note:
        A batch of a host that writes one request after another (``batched`` is false) is shaped
        once, as the one update that it is.
    """

    @abstractmethod
    def transform(self, name: str, update: WeightUpdate) -> WeightUpdate:
        """Return what is to be added in place of the host's update.

        Args:
            name: The parameter, which still has its value from before the update.
            update: The host's update of it.
        """

    def edit(self, batch: EditBatch) -> Delta:
        """Let the host find the batch's update, and shape it.

        Args:
            batch: Requests and their token ids.

        Returns:
            The shaped update, with the host's own records.
        """
        return self._shaped(self.editor.edit(batch))

    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Find one shaped delta a request, with the host's own way of finding several at once.

        Args:
            batch: Requests and their token ids.
        """
        return [self._shaped(delta) for delta in self.editor.edit_independent(batch)]

    def _shaped(self, delta: Delta) -> Delta:
        weights = {name: self.transform(name, update) for name, update in delta.weights.items()}
        return replace(delta, weights=weights)
