"""Self-contained HTML page of a benchmark: its summary at one glance, then every table.

The page has no script and makes no network requests. Each cell is coloured by its share, on a
scale that colour-blind readers and grey prints keep, and says its figures.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from lightning_edit.exceptions import ReportError
from lightning_edit.report.page import INSTALL, missing
from lightning_edit.report.panels import SCALE, Panel, ground, ink
from lightning_edit.storage.atomic import write_atomic


def write_grid_page(
    title: str, paragraphs: Sequence[str], summary: Sequence[Panel], tables: Sequence[Panel],
    out: Path,
) -> Path:  # fmt: skip
    """Write the HTML page of a benchmark.

    Args:
        title: Title of the benchmark.
        paragraphs: Note and legend.
        summary: Panels at the top of the page.
        tables: All tables, each opened by a click.
        out: The HTML file; it is written atomically.

    Returns:
        ``out``.

    Raises:
        ReportError: If Jinja is missing, or the file cannot be written.
    """
    if "jinja2" in missing():
        raise ReportError(f"the page needs jinja2; install with: {INSTALL}")
    from jinja2 import Environment, PackageLoader, StrictUndefined  # the extra `report`

    environment = Environment(
        loader=PackageLoader("lightning_edit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ground": ground, "ink": ink}
    templates = files("lightning_edit.report") / "templates"
    page = environment.get_template("grid.html").render(
        title=title,
        paragraphs=[one for one in paragraphs if one],
        summary=[panel for panel in summary if panel.has_scores],
        tables=tables,
        scale=SCALE,
        style=(templates / "page.css").read_text(encoding="utf-8"),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, page.encode("utf-8", "replace"))
    except OSError as error:
        raise ReportError(f"could not write {out}: {error.strerror or error}") from error
    return out
