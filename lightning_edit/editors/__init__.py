"""Knowledge editors, registered by this import so that the command line finds them by name."""

from lightning_edit.editors.base import Editor
from lightning_edit.editors.gradient.ft import FT, FTL, FTM
from lightning_edit.editors.gradient.locft_bf import LocFTBF
from lightning_edit.editors.gradient.lora import LoRAEdit
from lightning_edit.editors.gradient.ultraedit import UltraEdit
from lightning_edit.editors.hypernetwork.instructedit import InstructEdit
from lightning_edit.editors.hypernetwork.ke import KE
from lightning_edit.editors.hypernetwork.malmen import MALMEN
from lightning_edit.editors.hypernetwork.mend import MEND
from lightning_edit.editors.hypernetwork.rledit import RLEdit
from lightning_edit.editors.locate.alphaedit import AlphaEdit
from lightning_edit.editors.locate.d4s import D4S
from lightning_edit.editors.locate.emmet import EMMET
from lightning_edit.editors.locate.encore import ENCORE
from lightning_edit.editors.locate.memit import MEMIT
from lightning_edit.editors.locate.nse import NSE
from lightning_edit.editors.locate.pmet import PMET
from lightning_edit.editors.locate.r_rome import RROME
from lightning_edit.editors.locate.rome import ROME
from lightning_edit.editors.memory.grace import GRACE
from lightning_edit.editors.memory.melo import MELO
from lightning_edit.editors.memory.memoir import MEMOIR
from lightning_edit.editors.memory.wise import WISE
from lightning_edit.editors.neurons.calinet import CaliNet
from lightning_edit.editors.neurons.kn import KN
from lightning_edit.editors.neurons.t_patcher import TPatcher
from lightning_edit.editors.prompting.ice import ICE
from lightning_edit.editors.prompting.ike import IKE
from lightning_edit.editors.prompting.mello import MeLLo
from lightning_edit.editors.prompting.memprompt import MemPrompt
from lightning_edit.editors.prompting.rag import RAG
from lightning_edit.editors.routing.serac import SERAC
from lightning_edit.editors.wrappers.lti import LTI
from lightning_edit.editors.wrappers.one_li import OneLI
from lightning_edit.editors.wrappers.prune import PRUNE
from lightning_edit.editors.wrappers.rect import RECT
from lightning_edit.editors.wrappers.sir import SIR

__all__ = [
    "D4S",
    "EMMET",
    "ENCORE",
    "FT",
    "FTL",
    "FTM",
    "GRACE",
    "ICE",
    "IKE",
    "KE",
    "KN",
    "LTI",
    "MALMEN",
    "MELO",
    "MEMIT",
    "MEMOIR",
    "MEND",
    "NSE",
    "PMET",
    "PRUNE",
    "RAG",
    "RECT",
    "ROME",
    "RROME",
    "SERAC",
    "SIR",
    "WISE",
    "AlphaEdit",
    "CaliNet",
    "Editor",
    "InstructEdit",
    "LoRAEdit",
    "LocFTBF",
    "MeLLo",
    "MemPrompt",
    "OneLI",
    "RLEdit",
    "TPatcher",
    "UltraEdit",
]
