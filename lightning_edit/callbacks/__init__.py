"""Lightning callbacks that measure what training or editing does to a language model.

Import from here, never from the link ``callbacks`` at the top of the repository: it would load
every class twice.
"""

from lightning_edit.callbacks.aspects import LocalityCallback, PortabilityCallback
from lightning_edit.callbacks.base import Measuring
from lightning_edit.callbacks.collapse import CollapseCallback
from lightning_edit.callbacks.drift import DriftCallback
from lightning_edit.callbacks.efficiency import EfficiencyCallback
from lightning_edit.callbacks.evaluation import EditEvaluation
from lightning_edit.callbacks.guard import CollapseGuard
from lightning_edit.callbacks.overfitting import OverfittingCallback
from lightning_edit.callbacks.report import ReportCallback
from lightning_edit.callbacks.ripple import RippleCallback

__all__ = [
    "CollapseCallback",
    "CollapseGuard",
    "DriftCallback",
    "EditEvaluation",
    "EfficiencyCallback",
    "LocalityCallback",
    "Measuring",
    "OverfittingCallback",
    "PortabilityCallback",
    "ReportCallback",
    "RippleCallback",
]
