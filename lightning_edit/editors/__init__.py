"""Editors. Importing this package is their registration: the command line finds them by name."""

from lightning_edit.editors.alphaedit import AlphaEdit
from lightning_edit.editors.base import Editor
from lightning_edit.editors.d4s import D4S
from lightning_edit.editors.emmet import EMMET
from lightning_edit.editors.encore import ENCORE
from lightning_edit.editors.ft import FT, FTL, FTM
from lightning_edit.editors.kn import KN
from lightning_edit.editors.lora import LoRAEdit
from lightning_edit.editors.lti import LTI
from lightning_edit.editors.memit import MEMIT
from lightning_edit.editors.mend import MEND
from lightning_edit.editors.nse import NSE
from lightning_edit.editors.one_li import OneLI
from lightning_edit.editors.pmet import PMET
from lightning_edit.editors.prune import PRUNE
from lightning_edit.editors.r_rome import RROME
from lightning_edit.editors.rect import RECT
from lightning_edit.editors.rome import ROME
from lightning_edit.editors.sir import SIR
from lightning_edit.editors.ultraedit import UltraEdit

__all__ = [
    "D4S",
    "EMMET",
    "ENCORE",
    "FT",
    "FTL",
    "FTM",
    "KN",
    "LTI",
    "MEMIT",
    "MEND",
    "NSE",
    "PMET",
    "PRUNE",
    "RECT",
    "ROME",
    "RROME",
    "SIR",
    "AlphaEdit",
    "Editor",
    "LoRAEdit",
    "OneLI",
    "UltraEdit",
]
