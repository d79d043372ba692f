"""Kill runs with SIGKILL, resume them, and compare every byte with runs that were never killed.

Every callback, alone and all together, in each protocol, with an editor of each family, on one and
two threads. Runs that are killed have another hash seed than those they are compared with.

Run:  python benchmarks/robustness/resume_matrix.py --out benchmarks/results/resume_matrix.json
      python benchmarks/robustness/resume_matrix.py --pairs   # one for each editor and protocol
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from rich.console import Console
from rich.progress import track

import lightning_edit.callbacks as every_callback
from lightning_edit.benchmark.machine import machine
from lightning_edit.callbacks import MeasurementCallback
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import D4S, FTM, KN, MEND, PRUNE, ROME, AlphaEdit, UltraEdit
from lightning_edit.editors.base import Editor
from lightning_edit.edits.ledger import Ledger
from lightning_edit.models.loading import load_language_model
from lightning_edit.session.edit_session import EditSession
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.storage.atomic import write_atomic
from lightning_edit.storage.run_folder import RunFolder

EDITS = 4

EDITORS: dict[str, Callable[[], Editor]] = {
    "ROME": lambda: ROME(steps=4),
    "AlphaEdit": lambda: AlphaEdit(steps=4),
    "PRUNE(D4S)": lambda: PRUNE(D4S(steps=4)),
    "FTM": lambda: FTM(steps=4),
    "UltraEdit": UltraEdit,
    "MEND": lambda: MEND(layers=[3]),
    "KN": lambda: KN(steps=4),
}
FACTS = [
    {"id": f"known-{n}", "prompt": f"The capital of {country} is", "target": city}
    for n, (country, city) in enumerate([("Italy", "Rome"), ("Peru", "Lima"), ("Japan", "Tokyo")])
]
CALLBACKS: dict[str, Callable[[], MeasurementCallback]] = {
    "AttributionCallback": lambda: every_callback.AttributionCallback(facts=2, threshold=0.0),
    "CollapseCallback": lambda: every_callback.CollapseCallback(
        limit=12, generations=2, max_new_tokens=8, every_n_commits=2
    ),
    "CollapseGuard": lambda: every_callback.CollapseGuard(
        limit=12, min_earlier=0.1, every_n_commits=2
    ),
    "DriftCallback": lambda: every_callback.DriftCallback(limit=12),
    "DurabilityCallback": lambda: every_callback.DurabilityCallback(limit=4),
    "EditEvaluation": lambda: every_callback.EditEvaluation(requests=FACTS),
    "EfficiencyCallback": every_callback.EfficiencyCallback,
    "LocalityCallback": lambda: every_callback.LocalityCallback(other_task=10),
    "OverfittingCallback": every_callback.OverfittingCallback,
    "PortabilityCallback": every_callback.PortabilityCallback,
    "ReportCallback": every_callback.ReportCallback,
    "RippleCallback": lambda: every_callback.RippleCallback(size=5),
}
#: Callbacks that the embedded model cannot have, with the reason.
NOT_ASKED = {"RobustnessCallback": "asks through a chat template, which the model has not"}
PROTOCOLS = ("single", "batch", "sequential")
THREADS = (1, 2)
#: What the kill interrupts.
MOMENTS = ("before a commit", "after a commit", "before an evaluation", "after a checkpoint")


@dataclass(frozen=True)
class Cell:
    """One comparison.

    Args:
        editor: Name of the editor.
        protocol: How the edits are written.
        callbacks: A name, ``all`` or ``none``.
        threads: Threads of PyTorch.
    """

    editor: str
    protocol: str
    callbacks: str
    threads: int

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return "-".join(str(part) for part in asdict(self).values())

    @property
    def kill(self) -> tuple[str, int]:
        """What the kill interrupts, and the how manieth time it comes."""
        draw = random.Random(self.name)
        moment = draw.choice(MOMENTS)
        often = EDITS if moment.endswith("commit") else 2
        return moment, 1 if self.protocol == "batch" else draw.randint(1, often)


def cells(pairs: bool) -> list[Cell]:
    """Return all cells, or one for each pair of editor and protocol, with callbacks in turn."""
    listed = [
        Cell(*parts)
        for parts in itertools.product(EDITORS, PROTOCOLS, [*CALLBACKS, "all", "none"], THREADS)
    ]
    if not pairs:
        return listed
    # Every setting has its turn: there are more pairs than settings.
    turns = itertools.cycle([*CALLBACKS, "all", "none"])
    return [
        Cell(editor, protocol, next(turns), THREADS[number % 2])
        for number, (editor, protocol) in enumerate(itertools.product(EDITORS, PROTOCOLS))
    ]


def callbacks_without_settings() -> set[str]:
    """Return the names of the measuring callbacks that the matrix does not know."""
    measuring = {
        name
        for name, kind in vars(every_callback).items()
        if isinstance(kind, type)
        and issubclass(kind, MeasurementCallback)
        and kind is not MeasurementCallback
    }
    return measuring - CALLBACKS.keys() - NOT_ASKED.keys()


@contextlib.contextmanager
def killed(moment: str, number: int) -> Iterator[None]:
    """Let the process kill itself at some moment."""

    def before(owner: Any, name: str) -> None:
        work, left = getattr(owner, name), [number]

        def dying(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not moment.startswith("after"):
                os.kill(os.getpid(), signal.SIGKILL)
            result = work(*args, **kwargs)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, dying)

    places = dict(
        zip(
            MOMENTS,
            [
                (Ledger, "commit"),
                (Ledger, "commit"),
                (EditSession, "_evaluate"),
                (pl.Trainer, "save_checkpoint"),
            ],
            strict=True,
        )
    )
    before(*places[moment])
    yield


def run(cell: Cell, folder: Path, resume: bool) -> None:
    """Run or resume one stream of edits in this process."""
    torch.set_num_threads(cell.threads)
    names = {"all": list(CALLBACKS), "none": []}.get(cell.callbacks, [cell.callbacks])
    torch.manual_seed(0)
    editor = EDITORS[cell.editor]().bind(*load_language_model("atlas"))
    if isinstance(editor, MEND):  # what a network writes that was not trained is no matter here
        editor.trained_batches.fill_(1)
    trainer = EditTrainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[CALLBACKS[name]() for name in names],
    )
    trainer.edit(
        editor,
        AtlasDataModule(limit=EDITS),
        protocol=cell.protocol,  # type: ignore[arg-type]  # one of PROTOCOLS
        eval_at=[2, "end"],
        run=str(folder),
        checkpoint_every=2,
        ckpt_path="last" if resume else None,
    )


def in_child(work: Callable[[], None]) -> int:
    """Run something in a fork of this process, which has imported everything; return its status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001  # a child must not go on as its parent, whatever happens
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1]


def serve(folder: Path, chosen: list[Cell], cut: bool) -> None:
    """Run all cells whole, or kill and resume each."""
    for cell in chosen:
        place = folder / cell.name

        def dying(cell: Cell = cell, place: Path = place) -> None:
            with killed(*cell.kill):
                run(cell, place, resume=False)

        def whole(cell: Cell = cell, place: Path = place) -> None:
            run(cell, place, resume=cut)

        first = in_child(dying) if cut else 0
        second = in_child(whole) if RunFolder(place).has_run or not cut else first
        write_atomic(folder / f"{cell.name}.json", json.dumps([first, second]).encode())


def product(run_folder: Path) -> dict[str, Any]:
    """Return what must be equal, by name; times and memory aside."""
    folder = RunFolder(run_folder)
    results = json.loads(folder.results.read_text())
    results.pop("timing")
    points = [{k: _timeless(v) for k, v in point.items()} for point in results.pop("points")]
    measures = []
    if folder.measures.exists():
        for line in folder.measures.read_text().splitlines():
            row = json.loads(line)
            measures.append(row | {"values": _timeless(row.get("values", {}))})
    return {
        "attribution": folder.attribution.read_bytes() if folder.attribution.exists() else b"",
        "deltas": {p.name: p.read_bytes() for p in sorted(folder.ledger.glob("*.safetensors"))},
        "journal": (folder.ledger / "journal.jsonl").read_bytes(),
        "cases": folder.cases.read_bytes(),
        "baseline": folder.baseline.read_bytes(),
        "passes": folder.passes.read_bytes(),
        "measures": measures,
        "results": [results, points],
    }


def _timeless(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    changing = ("seconds", "_bytes")
    return {name: one for name, one in value.items() if not name.endswith(changing)}


def compare(folder: Path, cell: Cell) -> dict[str, Any]:
    """Compare a killed and a whole run of one cell."""
    record: dict[str, Any] = asdict(cell) | {"killed": f"{cell.kill[0]}, {cell.kill[1]}"}
    status = json.loads((folder / "cut" / f"{cell.name}.json").read_text())
    _, whole = json.loads((folder / "whole" / f"{cell.name}.json").read_text())
    if whole or status[1]:
        return record | {"differs": ["a run failed"]}
    if status[0] != signal.SIGKILL:
        record["killed"] = "no: it had ended before"
    left, right = (product(folder / kind / cell.name) for kind in ("whole", "cut"))
    return record | {"differs": [name for name in left if left[name] != right[name]]}


def main() -> None:
    """Run, compare, and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pairs", action="store_true", help="a cell for each pair of editor and protocol"
    )
    parser.add_argument("--only", default="", help="cells whose name has this in it")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if absent := callbacks_without_settings():
        parser.error(f"no settings for the callbacks {', '.join(sorted(absent))}; add them here")
    chosen = [cell for cell in cells(options.pairs) if options.only in cell.name]
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    if options.serve is not None:
        serve(options.serve, chosen, cut=options.serve.name == "cut")
        return
    begin = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="resume-matrix-"))
    again = [sys.executable, *sys.argv]
    servers = []
    for seed, kind in enumerate(("whole", "cut")):
        (folder / kind).mkdir()
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "OMP_WAIT_POLICY": "PASSIVE"}
        log = (folder / f"{kind}.log").open("w")
        servers.append(
            subprocess.Popen(
                [*again, "--serve", str(folder / kind)],
                env=environment, stdout=log, stderr=log,
            )
        )  # fmt: skip
    records = []
    try:
        for cell in track(chosen, "Cells", console=Console(stderr=True)):
            ends = [folder / kind / f"{cell.name}.json" for kind in ("whole", "cut")]
            while not all(end.exists() for end in ends):
                if any(server.poll() for server in servers):
                    sys.exit(f"a process died; see {folder}/*.log")
                time.sleep(0.05)
            records.append(compare(folder, cell))
            if not records[-1]["differs"]:
                for kind in ("whole", "cut"):
                    shutil.rmtree(folder / kind / cell.name)
    finally:
        for server in servers:
            server.kill()
    unequal = [record for record in records if record["differs"]]
    record = {
        "cells": len(records),
        "equal": len(records) - len(unequal),
        "killed": sum(not one["killed"].startswith("no") for one in records),
        "seconds": round(time.perf_counter() - begin),
        "unequal": unequal,
        "machine": machine(),
        "every": records,
    }
    shown = {name: value for name, value in record.items() if name != "every"}
    Console().print_json(json.dumps(shown))
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    if unequal:
        sys.exit(f"{len(unequal)} cells differ; their folders are under {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
