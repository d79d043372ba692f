"""Editor that makes no edits: it holds a model whose deltas were made elsewhere."""

from typing import NoReturn

from lightning_edit.editors.base import Editor
from lightning_edit.exceptions import ConfigError
from lightning_edit.types import EditBatch


class NoEditor(Editor, family=True):
    """Placeholder of an editor, for a model whose updates come from somebody's own training.

    It answers for the model like every editor, but refuses to edit.
    """

    architectures = ("decoder-only", "encoder-decoder")

    def edit(self, batch: EditBatch) -> NoReturn:
        """Refuse.

        Args:
            batch: Requests that cannot be written.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "this handle has no editor, only deltas that were made elsewhere; commit one with "
            "`commit(delta)`, or edit with an editor of the library: "
            "EditedModel(FTM().bind(model, tokenizer))"
        )
