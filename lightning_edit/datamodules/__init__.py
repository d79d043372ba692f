"""LightningDataModules of edit requests: zsRE, COUNTERFACT, KnowEdit, MQuAKE, JSON Lines, ….

Classes are imported lazily, so that parsing a file (:mod:`lightning_edit.datamodules.formats`) or
checking one (:mod:`lightning_edit.cli.data`) loads neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_edit.datamodules.atlas import AtlasDataModule as AtlasDataModule
    from lightning_edit.datamodules.base import EditDataModule as EditDataModule
    from lightning_edit.datamodules.files import (
        CounterFactDataModule as CounterFactDataModule,
    )
    from lightning_edit.datamodules.files import FileDataModule as FileDataModule
    from lightning_edit.datamodules.files import JSONLDataModule as JSONLDataModule
    from lightning_edit.datamodules.files import KnowEditDataModule as KnowEditDataModule
    from lightning_edit.datamodules.files import MQuAKEDataModule as MQuAKEDataModule
    from lightning_edit.datamodules.files import QAEditDataModule as QAEditDataModule
    from lightning_edit.datamodules.files import (
        RippleEditsDataModule as RippleEditsDataModule,
    )
    from lightning_edit.datamodules.files import ZsREDataModule as ZsREDataModule
    from lightning_edit.datamodules.instructed import (
        InstructedDataModule as InstructedDataModule,
    )

_HOME = {
    "AtlasDataModule": "atlas",
    "CounterFactDataModule": "files",
    "EditDataModule": "base",
    "FileDataModule": "files",
    "InstructedDataModule": "instructed",
    "JSONLDataModule": "files",
    "KnowEditDataModule": "files",
    "MQuAKEDataModule": "files",
    "QAEditDataModule": "files",
    "RippleEditsDataModule": "files",
    "ZsREDataModule": "files",
}

__all__ = sorted(_HOME)  # noqa: PLE0605  # the table is the single list of names


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
