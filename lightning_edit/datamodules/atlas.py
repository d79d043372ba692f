"""Data module of edit requests over the embedded atlas, a graph of real geography."""

from functools import lru_cache
from typing import Any

from lightning_edit.atlas.graph import load_atlas
from lightning_edit.atlas.requests import make_requests
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.types import EditRequest


class AtlasDataModule(EditDataModule):
    """Data module of counterfactual edits over the embedded atlas; nothing is downloaded.

    The facts of ``train``, ``val`` and ``test`` are disjoint (70, 10 and 20 % of each relation) and
    do not depend on the seed; the seed samples wordings, new objects and probes; see
    :func:`lightning_edit.atlas.requests.make_requests`.

    Args:
        questions: Whether prompts and locality probes are questions, the form of zsRE, instead of
            statements, the form of COUNTERFACT. Targets are the same; rephrases are of both forms.
        kwargs: Other arguments, passed to :class:`~lightning_edit.datamodules.base.EditDataModule`.
    """

    def __init__(self, questions: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.questions = questions

    def load_split(self, split: str) -> list[EditRequest]:
        """Generate the edit requests of one split."""
        return list(_requests(self.seed, split, self.questions))


@lru_cache(maxsize=8)  # the cells of a grid and the trials of a study read the same few splits
def _requests(seed: int, split: str, questions: bool) -> tuple[EditRequest, ...]:
    return tuple(make_requests(load_atlas(), seed, split, questions))
