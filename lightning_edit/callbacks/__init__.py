"""Lightning callbacks that measure what training or editing does to a language model.

Import from here, never from the link ``callbacks`` at the top of the repository: it would load
every class twice.
"""

from lightning_edit.callbacks.evaluation import EditEvaluation

__all__ = ["EditEvaluation"]
