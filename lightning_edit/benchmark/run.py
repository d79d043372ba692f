"""Run the cells of a benchmark grid in turn; a failed cell is recorded and the next one runs."""

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from filelock import FileLock, Timeout
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from lightning_edit.benchmark.build import build
from lightning_edit.benchmark.folders import CellFolder
from lightning_edit.benchmark.grid import Cell, Grid
from lightning_edit.benchmark.memory import measure_in_own_process
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors.arguments import shift_seeds
from lightning_edit.editors.base import Editor
from lightning_edit.evaluation.evaluator import layout_for
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.exceptions import ConfigError
from lightning_edit.metrics.aspects import request_means
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.storage.atomic import atomic_path, write_atomic
from lightning_edit.storage.jsonl import iterate_rows


@dataclass(frozen=True)
class Outcome:
    """Outcome of one attempt at a cell: done, failed or run by another process.

    Args:
        cell: The cell.
        status: ``done``, ``failed``, or ``elsewhere`` (another process runs it).
        seconds: Wall time of the attempt.
        told: Message for the terminal, one line.
    """

    cell: Cell
    status: str
    seconds: float
    told: str


def run_cells(
    grid: Grid,
    cells: Sequence[Cell],
    out: Path,
    tell: Callable[[Outcome], None],
    begin: Callable[[Cell], None],
) -> list[Outcome]:
    """Run the cells of a benchmark, with a fresh model for each.

    Every cell loads its model from disk, so no state of another cell can leak into it.

    Args:
        grid: The benchmark.
        cells: The cells to run.
        out: Folder of the benchmark.
        tell: Called after each cell.
        begin: Called before each cell.

    Returns:
        One outcome per cell.
    """
    outcomes = []
    for cell in cells:
        begin(cell)
        outcome = _attempt(grid, cell, out)
        tell(outcome)
        outcomes.append(outcome)
    return outcomes


def _attempt(grid: Grid, cell: Cell, out: Path) -> Outcome:
    folder = CellFolder(out, cell)
    folder.path.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        # The operating system frees the lock when the process ends, so a kill needs no clean-up.
        with FileLock(folder.lock, timeout=0):
            if folder.status == "done":
                return Outcome(cell, "done", 0.0, "was completed by another process")
            folder.error.unlink(missing_ok=True)
            message = _record_errors(folder, started, lambda: _run(grid, cell, folder, out))
    except Timeout:
        return Outcome(cell, "elsewhere", 0.0, "is being run by another process")
    return Outcome(cell, folder.status, time.perf_counter() - started, message)


def _record_errors(folder: CellFolder, started: float, run: Callable[[], str]) -> str:
    try:
        return run()
    except Exception as error:  # noqa: BLE001  # every error is recorded and shown
        folder.write_json(
            folder.error,
            {
                "type": type(error).__name__,
                "message": str(error),
                "traceback": traceback.format_exc(),
                "seconds": round(time.perf_counter() - started, 3),
            },
        )
        return f"failed: {type(error).__name__}: {error}"


def _run(grid: Grid, cell: Cell, folder: CellFolder, out: Path) -> str:
    spec = cell.spec
    folder.write_json(folder.specification, spec)
    if not folder.scores.exists():
        message = _run_edits(grid, cell, folder, out)
    else:
        message = "was edited and scored already"
    if cell.memory and not folder.memory.exists():
        folder.write_json(folder.memory, measure_in_own_process(folder.specification))
    return message


def bound_editor(spec: Mapping[str, Any], seed: int) -> tuple[Editor, EditDataModule]:
    """Return a cell's editor, bound to its model from disk, and its data, set up for edits.

    Args:
        spec: Specification of the cell.
        seed: Its seed; every part of the editor that has one is shifted by it.
    """
    pl.seed_everything(seed, verbose=False)
    lm = spec["lm"]
    model, tokenizer = load_language_model(
        lm.get("lm", "atlas"),
        lm.get("lm_dtype", "float32"),
        lm.get("lm_revision"),
        lm.get("lm_bos", False),
        lm.get("lm_trust_remote_code", False),
    )
    editor, data = build(spec)
    shift_seeds(editor, seed)
    form = PromptFormat(
        lm.get("lm_chat", False),
        lm.get("lm_system"),
        None,
        lm.get("lm_chat_options", {}),
        lm.get("lm_end_answers", False),
    )
    editor.bind(model, PromptEncoder(tokenizer, form))
    data.prepare_data()
    data.setup("edit")
    return editor, data


def _run_edits(grid: Grid, cell: Cell, folder: CellFolder, out: Path) -> str:
    spec = cell.spec
    editor, data = bound_editor(spec, cell.seed)
    model = editor.language_model
    trainer = EditTrainer(
        **{
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder.path),
            "devices": 1,
            # Under SLURM, Lightning would take the task's number of processes, and the signals.
            "plugins": [LightningEnvironment()],
            **grid.trainer,
        }
    )
    if trainer.world_size > 1:
        raise ConfigError(
            f"a cell of a benchmark runs in one process, but the grid's trainer has "
            f"{trainer.world_size}; leave out devices, num_nodes and strategy, and run cells at "
            "once instead (--shard, --launcher slurm)"
        )
    asked = _asked(spec, editor, trainer.strategy.root_device.type, grid.trainer)
    shared = out / "baselines" / f"{weights_hash(model)[:16]}-{data.data_hash()[:16]}-{asked}.jsonl"
    passes = shared.with_suffix(".passes.json")  # the layout in which it was scored, written last
    new = not folder.has_run and not folder.baseline.exists()
    if new and passes.exists() and shared.exists():
        write_atomic(folder.passes, passes.read_bytes())
        write_atomic(folder.baseline, shared.read_bytes())
        new = False
    results = trainer.edit(
        editor,
        data,
        **spec["protocol"],
        run=str(folder.path),
        modes=tuple(spec["modes"]),
        seed=cell.seed,
        ckpt_path="last" if folder.has_run else None,
    )
    if new:  # what an older version began may have scores and layouts that do not belong together
        shared.parent.mkdir(parents=True, exist_ok=True)
        for path, scored in ((shared, folder.baseline), (passes, folder.passes)):
            with atomic_path(path, several_writers=True) as part:
                part.write_bytes(scored.read_bytes())
    folder.write_json(folder.scores, _scores(folder, results))
    return _summary_line(results)


def _asked(spec: Mapping[str, Any], editor: Editor, device: str, trainer: Mapping[str, Any]) -> str:
    """Return a digest of how a cell scores the pristine model; cells that do it alike share it.

    Args:
        spec: Specification of the cell: its model's options (a chat template, a BOS token) and its
            modes are part of what is asked.
        editor: The editor, bound. How a model that thinks is asked is not in the specification;
            editors that decide by prompt need passes in which prompts share nothing, and those with
            responders of their own lay out passes themselves.
        device: Type of the device that the model runs on.
        trainer: Options of the Trainer, whose callbacks may hook into the model.
    """
    responder, form = editor.responder([]), editor.prompts.form
    layout = layout_for(editor.language_model, responder).to_dict()
    parts = [spec["lm"], list(spec["modes"]), layout, hasattr(responder, "layout"), device]
    parts.append([_name_of(one) for one in trainer.get("callbacks") or ()])
    if form.think is not None or form.chat_options != spec["lm"].get("lm_chat_options", {}):
        parts.append(form.to_dict())
    asked = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()[:8]


def _name_of(callback: Any) -> str:
    given = callback.get("class_path") if isinstance(callback, Mapping) else None
    return given or type(callback).__name__


def _scores(folder: CellFolder, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return every request's metrics at each evaluation point; point 0 is the pristine model."""
    points: dict[int, dict[str, list[ProbeScore]]] = {}
    for number, path in ((0, folder.baseline), (None, folder.cases)):
        for _, row in iterate_rows(path):
            after = row["after"] if number is None else number
            points.setdefault(after, {}).setdefault(row["edit_id"], []).append(
                ProbeScore.from_row(row)
            )
    return {
        "points": {
            str(after): {
                request: {
                    f"{group}/{measure}": round(value, 6)
                    for (group, measure), value in request_means(scores).items()
                }
                for request, scores in requests.items()
            }
            for after, requests in sorted(points.items())
        },
        "timing": results["timing"],
        "language_model": results["language_model"],
        "data_hash": results["data"]["hash"],
        "versions": results["versions"],
    }


def _summary_line(results: Mapping[str, Any]) -> str:
    last = max(results["points"], key=lambda point: point["after"])
    timing = results["timing"]
    shown = [
        f"{name} {last['metrics'][metric]:.2f}"
        for name, metric in (
            ("reliability", "reliability/em@tf"),
            ("locality", "locality/kept@tf"),
        )
        if metric in last["metrics"]
    ]
    shown.append(f"{timing['edit_seconds'] / timing['edits']:.2f} s an edit")
    return ", ".join(shown)
