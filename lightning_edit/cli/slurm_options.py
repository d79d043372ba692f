"""Options ``--launcher`` and ``--slurm.…`` of ``lightning-edit benchmark``. No import of torch."""

import argparse
import re
from typing import Any

from lightning_edit.benchmark.slurm import SlurmOptions
from lightning_edit.exceptions import ConfigError

#: By attribute of :class:`SlurmOptions`: the option's name, its type, metavar and help.
_OPTIONS: dict[str, tuple[str, type, str, str]] = {
    "partition": ("partition", str, "NAME", "partition; default: the cluster's"),
    "cpus": ("cpus", int, "N", "CPU cores of a task, and its threads (OMP_NUM_THREADS)"),
    "gpus": ("gpus", int, "N", "GPUs of a task: 0 or 1"),
    "mem_gb": ("mem_gb", float, "GB", "main memory of a task"),
    "parallel": ("parallel", int, "N", "tasks that may run at once (default: 64)"),
    "cells_per_task": (
        "cells_per_task", int, "N", "cells of a task, one after the other (default: 1)",
    ),
    "account": ("account", str, "NAME", "account that is charged"),
    "qos": ("qos", str, "NAME", "quality of service"),
    "constraint": ("constraint", str, "FEATURES", "features that a node must have"),
}  # fmt: skip
#: SLURM's ways to write a time, and the minutes of their parts.
_TIMES = {
    r"(\d+)": (1.0,),
    r"(\d+):(\d+)": (1.0, 1 / 60),
    r"(\d+):(\d+):(\d+)": (60.0, 1.0, 1 / 60),
    r"(\d+)-(\d+)": (1440.0, 60.0),
    r"(\d+)-(\d+):(\d+)": (1440.0, 60.0, 1.0),
    r"(\d+)-(\d+):(\d+):(\d+)": (1440.0, 60.0, 1.0, 1 / 60),
}


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where cells run.

    Args:
        parser: The verb's parser.
    """
    parser.add_argument(
        "--launcher", choices=("local", "slurm"), default="local",
        help="local: run the cells here, in turn; slurm: submit them as a job array and return; "
        "needs the extra `slurm`",
    )  # fmt: skip
    group = parser.add_argument_group("tasks of the job array (--launcher slurm)")
    for name, (option, kind, metavar, text) in _OPTIONS.items():
        group.add_argument(
            f"--slurm.{option}", dest=f"slurm_{name}", type=kind, metavar=metavar, help=text
        )
    group.add_argument(
        "--slurm.time", dest="slurm_minutes", type=minutes, metavar="TIME",
        help="limit of a task, as for sbatch: minutes, H:MM:SS or D-HH:MM:SS (default: 4:00:00); "
        "at the limit it goes on in a new one, three times",
    )  # fmt: skip
    group.add_argument(
        "--slurm.setup", dest="slurm_setup", action="append", metavar="LINE",
        help="shell line before a task, such as 'module load cuda'; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--slurm.extra", dest="slurm_extra", action="append", type=_pair, metavar="NAME=VALUE",
        help="further option of sbatch, such as reservation=night; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--slurm.cluster", dest="slurm_cluster", choices=("slurm", "local"),
        help="local: all tasks at once as processes of this machine, to try it out",
    )  # fmt: skip
    group.add_argument(
        "--slurm.wait", dest="slurm_wait", action="store_true", default=None,
        help="wait until all tasks have ended, then print the tables",
    )  # fmt: skip


def slurm_options(options: argparse.Namespace) -> SlurmOptions | None:
    """Return what the options ask of SLURM; ``None``: the cells run here.

    Args:
        options: The parsed options.

    Raises:
        ConfigError: If there are options of SLURM without ``--launcher slurm``.
    """
    prefix = "slurm_"
    given: dict[str, Any] = {
        name.removeprefix(prefix): value
        for name, value in vars(options).items()
        if name.startswith(prefix) and value is not None
    }
    if options.launcher == "local":
        if given:
            name = {"minutes": "time"}.get(first := next(iter(given)), first)
            raise ConfigError(
                f"--slurm.{name} is for tasks of a job array; add --launcher slurm, or leave it out"
            )
        return None
    given.pop("wait", None)
    for name in ("setup", "extra"):
        given[name] = tuple(given.get(name, ()))
    return SlurmOptions(**given)


def minutes(text: str) -> int:
    """Return the minutes of a time as sbatch takes it, rounded up.

    Args:
        text: Such as ``90``, ``1:30:00`` or ``1-12``.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    for pattern, parts in _TIMES.items():
        if found := re.fullmatch(pattern, text):
            numbers = map(int, found.groups())
            spent = sum(number * part for number, part in zip(numbers, parts, strict=True))
            # Sixtieths are not exact: 1/60 of 60 must not become a minute more.
            return int(-(-round(spent * 60) // 60))
    raise argparse.ArgumentTypeError(
        f"expected minutes, H:MM:SS or D-HH:MM:SS, such as 90 or 1:30:00, got {text!r}"
    )


def _pair(text: str) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not (name and given):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value
