"""Edit the knowledge of language models with Lightning, and measure everything else that moved.

Public names are loaded when they are first used: importing this package loads neither torch nor
Lightning.
"""

import importlib
from typing import Any

#: Where each public name lives.
_HOME: dict[str, str] = {
    "AlphaEdit": "lightning_edit.editors",
    "NSE": "lightning_edit.editors",
    "D4S": "lightning_edit.editors",
    "EMMET": "lightning_edit.editors",
    "PMET": "lightning_edit.editors",
    "ENCORE": "lightning_edit.editors",
    "KN": "lightning_edit.editors",
    "RECT": "lightning_edit.editors",
    "UltraEdit": "lightning_edit.editors",
    "PRUNE": "lightning_edit.editors",
    "OneLI": "lightning_edit.editors",
    "FTM": "lightning_edit.editors",
    "FT": "lightning_edit.editors",
    "FTL": "lightning_edit.editors",
    "MEMIT": "lightning_edit.editors",
    "MEND": "lightning_edit.editors",
    "ROME": "lightning_edit.editors",
    "RROME": "lightning_edit.editors",
    "AtlasDataModule": "lightning_edit.datamodules",
    "CounterFactDataModule": "lightning_edit.datamodules",
    "Delta": "lightning_edit.delta",
    "EditEvaluation": "lightning_edit.callbacks",
    "EditRequest": "lightning_edit.types",
    "EditTrainer": "lightning_edit.trainer",
    "EditedModel": "lightning_edit.handle",
    "Editor": "lightning_edit.editors.base",
    "JSONLDataModule": "lightning_edit.datamodules",
    "KnowEditDataModule": "lightning_edit.datamodules",
    "Ledger": "lightning_edit.ledger",
    "Probe": "lightning_edit.types",
    "ZsREDataModule": "lightning_edit.datamodules",
    "load_language_model": "lightning_edit.models.loading",
}

__all__ = sorted(_HOME)  # noqa: PLE0605  # a sorted list of the keys above, so the two cannot differ


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
