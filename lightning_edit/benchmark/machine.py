"""Hardware and software versions of the machine that ran a benchmark."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from lightning_edit.storage.results import versions


def machine() -> dict[str, Any]:
    """Return processor, cores, torch threads, platform and package versions."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": versions(),
    }
