"""Knowledge editing of language models with PyTorch Lightning, and measurement of side effects.

Public names are imported lazily, on first use: importing this package loads neither torch nor
Lightning.
"""

import importlib
from typing import Any

#: Public names of each module; a test compares them with the rooms' own lists.
_NAMES: dict[str, str] = {
    "callbacks": "AttributionCallback CollapseCallback CollapseGuard DriftCallback "
    "DurabilityCallback EditEvaluation EfficiencyCallback LocalityCallback MeasurementCallback "
    "OverfittingCallback PortabilityCallback ReportCallback RippleCallback RobustnessCallback",
    "datamodules": "AtlasDataModule CounterFactDataModule EditDataModule FileDataModule "
    "InstructedDataModule JSONLDataModule KnowEditDataModule MQuAKEDataModule QAEditDataModule "
    "RippleEditsDataModule ZsREDataModule",
    "editors": "AlphaEdit CaliNet D4S EMMET ENCORE Editor FT FTL FTM GRACE ICE IKE "
    "InstructEdit KE KN LTI LoRAEdit LocFTBF MALMEN MELO MEMIT MEMOIR MEND MeLLo "
    "MemPrompt NSE OneLI PMET PRUNE RAG RECT RLEdit ROME RROME SERAC SIR TPatcher "
    "UltraEdit WISE",
    "edits.delta": "Delta",
    "edits.edited_model": "EditedModel",
    "edits.ledger": "Ledger",
    "evaluation.edit_attribution": "attribute_edits",
    "export.runtime": "export_edited",
    "models.loading": "load_language_model",
    "models.prompt_encoder": "PromptEncoder",
    "models.prompt_format": "PromptFormat",
    "session.hold": "hold_model",
    "session.open": "open_run",
    "session.shipping": "load_edited",
    "session.trainer": "EditTrainer",
    "session.transaction": "Transaction",
    "types": "EditRequest Probe",
}
_HOME = {
    name: f"lightning_edit.{module}" for module, names in _NAMES.items() for name in names.split()
}

__all__ = sorted(_HOME)  # noqa: PLE0605  # a sorted list of the keys above, so the two cannot differ


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_hint(name)}")
    first_import = importlib.import_module("lightning_edit.functional.first_import")
    with first_import.without_collection():
        return getattr(importlib.import_module(_HOME[name]), name)


def _hint(name: str) -> str:
    from difflib import get_close_matches  # only needed for a typo

    close = get_close_matches(name, __all__, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
