"""Data modules of files and tables: published data sets, and own facts."""

import logging
import random
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_edit.datamodules.base import SPLITS, EditDataModule
from lightning_edit.datamodules.formats import read_requests
from lightning_edit.datamodules.sources import local_file, suffix_of
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest

_log = logging.getLogger(__name__)


class FileDataModule(EditDataModule):
    """Base data module of edit requests from one file, or from one file per split.

    The whole of ``path`` is the test split, unless ``fractions`` divides it; that is enough for
    editing and testing. Training needs ``train_path`` or ``fractions``.

    Args:
        path: A JSON list, JSON Lines, CSV, TSV or Parquet file, a URL, or the name of a data set on
            the hub (``owner/name`` or ``owner/name:file.json``). In Python also rows: a
            ``datasets.Dataset``, a ``pandas.DataFrame``, or a list of dictionaries.
        train_path: File or rows of the training split.
        val_path: File or rows of the validation split.
        fractions: Shares of train, validation and test (``[0.8, 0.1, 0.1]``) to divide ``path``
            into. All requests about one subject, and all of one case, are in the same split.
        **kwargs: As for :class:`EditDataModule`; ``seed`` also seeds the division.
    """

    def __init__(
        self,
        path: str | Any,
        train_path: str | Any | None = None,
        val_path: str | Any | None = None,
        fractions: tuple[float, float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.train_path = train_path
        self.val_path = val_path
        self.fractions = fractions
        self._split_cache: dict[str, list[EditRequest]] = {}

    @property
    @abstractmethod
    def form(self) -> str:
        """Name of the file format in :data:`lightning_edit.datamodules.formats.FORMS`."""

    def check_options(self, split: str) -> None:
        """Validate the options; see :meth:`EditDataModule.check_options`."""
        super().check_options(split)
        fractions = self.fractions
        if fractions is None:
            return
        if self.train_path is not None or self.val_path is not None:
            raise DataError(
                "`fractions` divides `path`, so `train_path` and `val_path` cannot be given as "
                "well; leave out one or the other"
            )
        if any(share < 0 for share in fractions) or abs(sum(fractions) - 1) > 1e-6:
            raise DataError(
                "`fractions` must be three shares of 0 or more that add up to 1, such as "
                f"[0.8, 0.1, 0.1]; got {list(fractions)}"
            )

    def prepare_data(self) -> None:
        """Download missing files, once for all processes."""
        for source in (self.path, self.train_path, self.val_path):
            if isinstance(source, str):
                local_file(source)

    def load(self, source: Any) -> list[EditRequest]:
        """Parse all edit requests of one source; log the number of skipped probes and records.

        Args:
            source: A file, a URL, the name of a data set, or rows.

        Raises:
            DataError: If the source cannot be downloaded or read.
        """
        named = isinstance(source, str | Path)
        place = local_file(str(source)) if named else source
        suffix = suffix_of(str(source)) if named else None
        parsed_file = read_requests(place, self.form, suffix=suffix)
        names = (request.id for request in parsed_file.requests)
        self._relations |= zip(names, parsed_file.relations, strict=True)
        name = str(source) if named else type(source).__name__
        for kind, count in parsed_file.note_counts().items():
            _log.warning("%s: %d × %s (details: lightning-edit data check)", name, count, kind)
        return parsed_file.requests

    def load_split(self, split: str) -> list[EditRequest]:
        """Load every request of a split, from its own file or as a fraction of ``path``."""
        if self.fractions is not None:
            if not self._split_cache:
                shares = split_by_fact(self.load(self.path), self.fractions, self.seed)
                self._split_cache = dict(zip(SPLITS, shares, strict=True))
            return self._split_cache[split]
        source = {"train": self.train_path, "val": self.val_path, "test": self.path}[split]
        if source is None and split == "train":
            raise DataError(
                f"{type(self).__name__} has no training facts: `path` is the test split; give "
                "`train_path` (--data.train_path FILE), or divide `path` "
                "(--data.fractions [0.8,0.1,0.1])"
            )
        return [] if source is None else self.load(source)


class ZsREDataModule(FileDataModule):
    """zsRE question answering in MEND's format, with EasyEdit's portability splits."""

    form = "zsre"


class CounterFactDataModule(FileDataModule):
    """COUNTERFACT in ROME's or EasyEdit's format, detected record by record."""

    form = "counterfact"


class KnowEditDataModule(FileDataModule):
    """KnowEdit, with its portability and locality probes."""

    form = "knowedit"


class QAEditDataModule(FileDataModule):
    """QAEdit: questions of three question-answering benchmarks, with unrelated ones (WILD)."""

    form = "qaedit"


class MQuAKEDataModule(FileDataModule):
    """MQuAKE (CF, CF-3k, T): cases of several edits behind one multi-hop question."""

    form = "mquake"


class RippleEditsDataModule(FileDataModule):
    """RippleEdits (popular, random, recent): tests by six criteria, with their conditions."""

    form = "rippleedits"


class JSONLDataModule(FileDataModule):
    """Own facts, one a line or row (JSON Lines, CSV, TSV, Parquet, ``datasets.Dataset``).

    The columns are the fields of docs/data.md, at least ``prompt`` and ``target``.
    """

    form = "jsonl"


def split_by_fact(
    requests: Sequence[EditRequest], fractions: Sequence[float], seed: int
) -> tuple[list[EditRequest], ...]:
    """Split requests into train, validation and test without shared subjects, prompts or cases.

    ``seed`` shuffles the facts; within a split the order of the source is kept. Fractions are met
    up to the size of one group (a case, or the requests about one subject).

    Example:
        >>> facts = [EditRequest(str(i), f"The capital of A{i} is", "B") for i in range(10)]
        >>> [len(part) for part in split_by_fact(facts, (0.8, 0.1, 0.1), seed=0)]
        [8, 1, 1]
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for position, request in enumerate(requests):
        groups[request.case or (request.subject or request.prompt).casefold()].append(position)
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    bounds = [round(sum(fractions[: i + 1]) * len(requests)) for i in range(len(fractions))]
    parts: list[list[int]] = [[] for _ in fractions]
    part = placed = 0
    for name in names:
        while part < len(parts) - 1 and placed >= bounds[part]:
            part += 1
        parts[part] += groups[name]
        placed += len(groups[name])
    return tuple([requests[i] for i in sorted(positions)] for positions in parts)
