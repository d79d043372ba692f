"""Data classes shared by all rooms: edit requests, probes, facts, tokenised batches.

Nothing here imports torch, so data files can be read and checked without loading it.
"""

from lightning_edit.types.probes import (
    ASPECT_OF_CRITERION,
    ASPECT_OF_KIND,
    Expect,
    Group,
    Mode,
    Probe,
    Rule,
    Triple,
)
from lightning_edit.types.requests import EditBatch, EditRequest, Encoded, Protocol, cases_of

__all__ = [
    "ASPECT_OF_CRITERION",
    "ASPECT_OF_KIND",
    "EditBatch",
    "EditRequest",
    "Encoded",
    "Expect",
    "Group",
    "Mode",
    "Probe",
    "Protocol",
    "Rule",
    "Triple",
    "cases_of",
]
