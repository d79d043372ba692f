"""Knowledge editing of language models with PyTorch Lightning, and measurement of side effects.

Public names are imported lazily, on first use: importing this package loads neither torch nor
Lightning.
"""

import importlib
from typing import Any

#: Module of each public name; editors are looked up in their own package.
_HOME: dict[str, str] = {
    "AtlasDataModule": "lightning_edit.datamodules",
    "CollapseCallback": "lightning_edit.callbacks",
    "CollapseGuard": "lightning_edit.callbacks",
    "CounterFactDataModule": "lightning_edit.datamodules",
    "Delta": "lightning_edit.edits.delta",
    "DriftCallback": "lightning_edit.callbacks",
    "EditEvaluation": "lightning_edit.callbacks",
    "EditRequest": "lightning_edit.types",
    "EditTrainer": "lightning_edit.session.trainer",
    "EditedModel": "lightning_edit.edits.edited_model",
    "Editor": "lightning_edit.editors.base",
    "EfficiencyCallback": "lightning_edit.callbacks",
    "JSONLDataModule": "lightning_edit.datamodules",
    "KnowEditDataModule": "lightning_edit.datamodules",
    "Ledger": "lightning_edit.edits.ledger",
    "LocalityCallback": "lightning_edit.callbacks",
    "MQuAKEDataModule": "lightning_edit.datamodules",
    "MeasurementCallback": "lightning_edit.callbacks",
    "OverfittingCallback": "lightning_edit.callbacks",
    "PortabilityCallback": "lightning_edit.callbacks",
    "Probe": "lightning_edit.types",
    "PromptEncoder": "lightning_edit.models.prompt_encoder",
    "PromptFormat": "lightning_edit.models.prompt_format",
    "ReportCallback": "lightning_edit.callbacks",
    "RippleCallback": "lightning_edit.callbacks",
    "RippleEditsDataModule": "lightning_edit.datamodules",
    "ZsREDataModule": "lightning_edit.datamodules",
    "load_language_model": "lightning_edit.models.loading",
}

__all__ = sorted(_HOME)  # noqa: PLE0605  # a sorted list of the keys above, so the two cannot differ


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    # Every editor is a public name too; `editors.__all__` is their list.
    if name[:1].isupper():
        editors = importlib.import_module("lightning_edit.editors")
        if name in editors.__all__:
            return getattr(editors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
