"""Run the cells of a benchmark grid as a SLURM job array, with submitit. No import of torch.

A task of the array runs some cells by name, as one process; results stay files in the cells'
folders, so a task that is killed, or repeated, loses nothing. submitit's own files (the batch
script, the pickled name of the task, what the tasks print) lie in ``slurm`` beside ``cells``.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_edit.benchmark.grid import Cell, Grid
from lightning_edit.benchmark.parse import read_grid
from lightning_edit.exceptions import ConfigError

if TYPE_CHECKING:  # an optional extra
    from submitit import AutoExecutor, Job
    from submitit.helpers import DelayedSubmission

#: Seconds between two looks at the tasks, in a file of this machine or by ``sacct``.
_LOOK = {"local": 1.0, "slurm": 30.0}
_INSTALL = 'pip install "lightning-edit[slurm]"'


@dataclass(frozen=True)
class SlurmOptions:
    """What each task of the job array asks of SLURM.

    Args:
        cluster: ``slurm``, or ``local``: every task at once as a process of this machine.
        partition: Partition; ``None``: the cluster's default.
        minutes: Time limit of a task. At the limit it is put into the queue again, three times.
        cpus: CPU cores of a task, and threads of its process; ``None``: the cluster's default.
        gpus: GPUs of a task: 0 or 1.
        mem_gb: Main memory of a task in GB; ``None``: the cluster's default.
        parallel: Tasks that may run at once.
        cells_per_task: Cells of a task, one after the other.
        setup: Shell lines that run before the task, such as ``module load cuda``.
        account: Account that is charged.
        qos: Quality of service.
        constraint: Features that a node must have.
        extra: Further options of ``sbatch``, by their long names.

    Raises:
        ConfigError: If a number is too small.
    """

    cluster: Literal["slurm", "local"] = "slurm"
    partition: str | None = None
    minutes: int = 240
    cpus: int | None = None
    gpus: int = 0
    mem_gb: float | None = None
    parallel: int = 64
    cells_per_task: int = 1
    setup: tuple[str, ...] = ()
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("minutes", "cpus", "parallel", "cells_per_task"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"slurm: {name} must be at least 1, got {value}")
        if self.gpus not in (0, 1):
            raise ConfigError(f"slurm: gpus is 0 or 1, not {self.gpus}: a cell uses one")

    def parameters(self, name: str) -> dict[str, Any]:
        """Return the arguments of submitit's ``update_parameters``.

        Args:
            name: Name of the job.
        """
        # A number of threads is part of a result's bits: it must not depend on the node.
        threads = [] if self.cpus is None else [f"export OMP_NUM_THREADS={self.cpus}"]
        setup = [*threads, *self.setup]
        found = {
            "name": name,
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "mem_gb": self.mem_gb,
            "gpus_per_node": self.gpus or None,
            "tasks_per_node": 1,
            "nodes": 1,
            "slurm_partition": self.partition,
            "slurm_array_parallelism": self.parallel,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_additional_parameters": dict(self.extra) or None,
            f"{self.cluster}_setup": setup or None,
        }
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class CellsTask:
    """Some cells of a grid, as the task of a job array.

    Args:
        grid: YAML file of the grid.
        names: Names of the cells.
        out: Folder of the benchmark.
    """

    grid: Path
    names: tuple[str, ...]
    out: Path

    def __call__(self) -> list[str]:
        """Run the cells that are not done.

        Returns:
            One line a cell. A cell that fails is recorded in its folder, as on one machine.

        Raises:
            ConfigError: If the grid has changed since, and no longer has a cell.
        """
        grid = read_grid(self.grid)
        cells = {cell.name: cell for cell in grid.cells}
        if gone := [name for name in self.names if name not in cells]:
            raise ConfigError(
                f"{self.grid} has changed since the job was submitted: it has no cell {gone[0]}; "
                "run the benchmark again"
            )
        from lightning_edit.benchmark.quiet import quiet
        from lightning_edit.benchmark.run import run_cells

        quiet()
        told: list[str] = []

        def tell(line: str) -> None:
            told.append(line)
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

        run_cells(
            grid,
            [cells[name] for name in self.names],
            self.out,
            lambda outcome: tell(f"{outcome.cell.title}: {outcome.told}"),
            lambda cell: None,
        )
        return told

    def checkpoint(self) -> "DelayedSubmission":
        """Return the task that goes on after a time limit or a preemption: this one.

        Cells that are done are left out then, and one that was interrupted is resumed.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def split(cells: Sequence[Cell], size: int) -> list[tuple[str, ...]]:
    """Deal the names of cells to tasks, of ``size`` cells each at most.

    Cells that follow each other often take equally long (one protocol, one model); each task gets
    some of every kind.

    Args:
        cells: The cells.
        size: Most cells of a task.
    """
    tasks = -(-len(cells) // size)
    return [tuple(cell.name for cell in cells[number::tasks]) for number in range(tasks)]


@dataclass(frozen=True)
class Submission:
    """A submitted job array.

    Args:
        jobs: One job of submitit a task.
        cluster: Where they run.
        logs: Folder of what the tasks print.
    """

    jobs: "Sequence[Job[list[str]]]"
    cluster: str
    logs: Path

    @property
    def job(self) -> str:
        """Number of the job, without the number of a task."""
        return str(self.jobs[0].job_id).partition("_")[0]

    def wait(self) -> Iterator[tuple[int, str]]:
        """Wait for the tasks, in the order in which they end.

        Yields:
            Number of tasks that have ended, and what became of one: a line a cell.
        """
        from submitit.helpers import as_completed

        ended = as_completed(self.jobs, poll_frequency=_LOOK[self.cluster])
        for number, job in enumerate(ended, 1):
            if job.paths.result_pickle.exists() and job.exception() is None:
                yield number, "\n".join(job.result())
            else:
                yield number, f"task {job.job_id} did not end well; see {job.paths.stderr}"


def submit(grid: Grid, cells: Sequence[Cell], out: Path, options: SlurmOptions) -> Submission:
    """Submit the cells as one job array, and return at once.

    Args:
        grid: The grid; its tasks read its file again.
        cells: The cells to run.
        out: Folder of the benchmark, on a file system that all nodes see.
        options: What each task asks for.

    Returns:
        The job.

    Raises:
        ConfigError: If submitit or SLURM is absent, or SLURM refuses the job.
    """
    logs = out.absolute() / "slurm"
    executor = _executor(logs / "%j", options)
    executor.update_parameters(**options.parameters(f"benchmark-{grid.path.stem}"))
    tasks = [
        CellsTask(grid.path.absolute(), names, out.absolute())
        for names in split(cells, options.cells_per_task)
    ]
    from submitit.core.utils import FailedJobError

    try:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        raise ConfigError(f"SLURM refuses the job: {str(error).strip()}") from error
    return Submission(jobs, options.cluster, logs)


def _executor(folder: Path, options: SlurmOptions) -> "AutoExecutor":
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            f"--launcher slurm needs submitit, which is not installed: {_INSTALL}"
        ) from error
    try:
        return submitit.AutoExecutor(folder=folder, cluster=options.cluster)
    except RuntimeError as error:
        raise ConfigError(
            "--launcher slurm needs a machine from which jobs are submitted, but there is no srun "
            "here; log in to the cluster, or use --launcher local with --shard"
        ) from error
