"""Reports of a run's results: terminal tables, a self-contained HTML page, paper figures.

Figures for papers: ``from lightning_edit import report; report.plot_aspects("runs/rome")``. The
plotting module is imported on first use, so tables and pages work without Matplotlib.
"""

import importlib
from typing import Any

from lightning_edit.exceptions import ReportError
from lightning_edit.storage.results import read_results as read_results

_HOME: dict[str, str] = {
    "plot_aspects": "figures",
    "plot_curves": "figures",
    "plot_drift": "figures",
    "plot_efficiency": "figures",
    "plot_ripple": "ripple_figure",
    "plot_tradeoff": "figures",
    "write_page": "page",
}

__all__ = sorted([*_HOME, "read_results"])  # noqa: PLE0605  # a sorted list of the keys above, so the two cannot differ


def __getattr__(name: str) -> Any:
    if name in _HOME:
        try:
            module = importlib.import_module(f"lightning_edit.report.{_HOME[name]}")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            raise ReportError(
                'figures need Matplotlib; install with: pip install "lightning-edit[plot]"'
            ) from error
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
