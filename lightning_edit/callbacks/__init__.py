"""Lightning callbacks that evaluate a language model during editing or training.

Import from here, never from the link ``callbacks`` at the top of the repository: it would load
every class twice.
"""

from lightning_edit.callbacks.aspects import LocalityCallback, PortabilityCallback
from lightning_edit.callbacks.attribution import AttributionCallback
from lightning_edit.callbacks.base import MeasurementCallback
from lightning_edit.callbacks.collapse import CollapseCallback
from lightning_edit.callbacks.context import Commit, EvalContext, Measurement
from lightning_edit.callbacks.drift import DriftCallback
from lightning_edit.callbacks.durability import DurabilityCallback
from lightning_edit.callbacks.efficiency import EfficiencyCallback
from lightning_edit.callbacks.evaluation import EditEvaluation
from lightning_edit.callbacks.guard import CollapseGuard
from lightning_edit.callbacks.overfitting import OverfittingCallback
from lightning_edit.callbacks.report import ReportCallback
from lightning_edit.callbacks.ripple import RippleCallback
from lightning_edit.callbacks.robustness import RobustnessCallback

#: Aliases: names of earlier versions.
Measuring, Moment = MeasurementCallback, EvalContext

__all__ = [
    "AttributionCallback",
    "CollapseCallback",
    "CollapseGuard",
    "Commit",
    "DriftCallback",
    "DurabilityCallback",
    "EditEvaluation",
    "EfficiencyCallback",
    "EvalContext",
    "LocalityCallback",
    "Measurement",
    "MeasurementCallback",
    "Measuring",
    "Moment",
    "OverfittingCallback",
    "PortabilityCallback",
    "ReportCallback",
    "RippleCallback",
    "RobustnessCallback",
]
