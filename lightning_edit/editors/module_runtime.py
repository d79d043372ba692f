"""Runtime of editors whose edits act inside modules: adapters built from the edits in force."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import nn

from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import LedgerError
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.module_adapter import ModuleAdapter, attach

#: Attribute of a model that says whose adapters are attached to it.
_OWNER = "_lightning_edit_runtime"


class _Owner:
    """Stands for a runtime; in a copy of the model, for none that can detach."""


class ModuleRuntime:
    """Attaches adapters for the edits in force to modules of a model.

    Args:
        model: The language model.
        build: Makes the adapters, by dotted module name, from a list of edits in force that is not
            empty. It must not depend on anything else that changes.

    Attributes:
        adapters: The adapters that are attached.

    Raises:
        LedgerError: If the model has edits of another editor or handle in force.
    """

    def __init__(
        self, model: nn.Module, build: Callable[[Sequence[Delta]], Mapping[str, ModuleAdapter]]
    ) -> None:
        self.model = model
        self.build = build
        self.adapters: Mapping[str, ModuleAdapter] = {}
        self._detach: Callable[[], None] | None = None
        self._owner = _Owner()
        self._require_free(vars(model).get(_OWNER))

    def _require_free(self, owner: object) -> None:
        if owner is None or owner is self._owner:
            return
        raise LedgerError(
            f"{type(self.model).__name__} has edits of another editor or handle in force that act "
            "at run time, and two would hide each other; undo those first, or edit further with "
            "their handle (a copy of an edited model keeps its edits)"
        )

    def install(self, in_force: Sequence[Delta]) -> None:
        """Attach the adapters of these edits in place of those that are attached.

        Args:
            in_force: Deltas, in the order of their commits; empty: nothing is left on the model.

        Raises:
            LedgerError: If the model has edits of another editor or handle in force.
        """
        if len(in_force):
            self._require_free(vars(self.model).get(_OWNER))
        adapters = self.build(in_force) if len(in_force) else {}  # before anything changes
        if self._detach is not None:
            self._detach()
            self._detach = None
            del vars(self.model)[_OWNER]
        self.adapters = adapters
        if adapters:
            self._detach = attach(self.model, adapters)
            vars(self.model)[_OWNER] = self._owner


class PromptDecisionResponder(ModelResponder):
    """Responder of editors that decide once a prompt: no pass shares what prompts have in common.

    The adapters on the model are told where prompts end, so that a decision is the same for a
    forced and a generated answer.
    """

    shares_prompts: ClassVar[bool] = False
