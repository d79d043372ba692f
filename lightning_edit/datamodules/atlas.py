"""Data module of edit requests over the embedded atlas, a graph of real geography."""

from lightning_edit.atlas.graph import load_atlas
from lightning_edit.atlas.requests import make_requests
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.types import EditRequest


class AtlasDataModule(EditDataModule):
    """Data module of counterfactual edits over the embedded atlas; nothing is downloaded.

    The facts of ``train``, ``val`` and ``test`` are disjoint (70, 10 and 20 % of each relation) and
    do not depend on the seed; the seed samples wordings, new objects and probes; see
    :func:`lightning_edit.atlas.requests.make_requests`.
    """

    def load_split(self, split: str) -> list[EditRequest]:
        """Generate the edit requests of one split."""
        return make_requests(load_atlas(), self.seed, split)
