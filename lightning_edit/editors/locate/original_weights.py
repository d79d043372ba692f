"""Original weights of an editor: those at binding, put in place while targets are searched."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_edit.models.weights import weight


class OriginalWeights:
    """Snapshot of a model's weights, to search targets on the unedited model (NSE, D4S).

    Args:
        model: The language model, not edited yet.
        names: Parameters that edits change; without any the snapshot is empty.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.model = model
        self.values = {name: weight(model, name).raw().detach().clone() for name in names}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the original weights into the model inside a ``with`` block."""
        raws = {name: weight(self.model, name).raw() for name in self.values}
        now = {name: raw.detach().clone() for name, raw in raws.items()}
        try:
            _copy_into(raws, self.values)
            yield
        finally:
            _copy_into(raws, now)


def _copy_into(raws: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, raw in raws.items():
            raw.copy_(values[name])
