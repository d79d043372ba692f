"""Export a run's edits as PEFT adapter, merged checkpoint or delta file."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_edit.exceptions import ExportError, ModelLoadError
from lightning_edit.export.adapter import write_adapter
from lightning_edit.export.card import TAGS, asking_example, base_model, write_card, write_edits
from lightning_edit.export.checkpoint import write_checkpoint
from lightning_edit.export.folder import atomic_folder, human_size
from lightning_edit.export.runtime import runtime_use, write_runtime, write_runtime_card
from lightning_edit.export.selection import Selection, combine, select_edits
from lightning_edit.models.loading import ATLAS, PACKAGED, auto_class, load_config

Format = Literal["peft", "merged", "delta", "runtime"]

#: File name of an export of format ``delta``.
DELTA = "delta.safetensors"

#: Kept shares of the squared update above this differ from 1 only by rounding.
EXACT = 1 - 1e-9


@dataclass(frozen=True)
class Exported:
    """Summary of a finished export: path, size, edits, loading code, kept share.

    Args:
        path: The folder.
        size: Its size as readable text.
        edits: Number of exported requests.
        code: A line of Python that loads the export.
        kept: Smallest share of a weight's squared update that was kept; 1.0 is exact.
    """

    path: Path
    size: str
    edits: int
    code: str
    kept: float = 1.0


def export(
    run: Path,
    format: Format,  # noqa: A002  # the name of the option
    out: Path | None = None,
    ids: Sequence[str] | None = None,
    max_rank: int | None = None,
    model: str | None = None,
    overwrite: bool = False,
    lm_trust_remote_code: bool = False,
) -> Exported:
    """Export the edits of a run to a folder.

    Args:
        run: The run folder.
        format: ``peft``: LoRA adapter; ``merged``: full checkpoint; ``delta``: one safetensors
            file that :meth:`~lightning_edit.edits.delta.Delta.load` reads; ``runtime``: the editor
            with its edits, for :func:`~lightning_edit.session.shipping.load_edited`.
        out: Folder to write; ``RUN/export/FORMAT`` when left out.
        ids: Ids of the requests to export, undone ones included; ``None``: all edits in force.
        max_rank: Largest LoRA rank; a larger update is truncated by its SVD.
        model: Folder or hub name of the unedited model, if it moved.
        overwrite: Whether to replace an earlier export at ``out``.
        lm_trust_remote_code: Whether to run the Python code that the model brings.

    Returns:
        Summary of the export. The folder is written atomically.

    Raises:
        ExportError: If there is nothing to export, or the format cannot express the edits.
        LedgerError: If the run's journal or a delta file is damaged.
        ModelLoadError: If the unedited model is needed and cannot be loaded.
    """
    selection = select_edits(run, ids)
    out = run / "export" / format if out is None else out
    base = model or selection.language_model("name")
    trust = lm_trust_remote_code
    if format == "runtime":
        with atomic_folder(out, overwrite) as folder:
            write_runtime(folder, selection)
            write_runtime_card(folder, out.name, selection, base)
            code = runtime_use(folder, base).rpartition("\n")[2]
        shown = code.replace("PATH", json.dumps(str(out)))
        return Exported(out, human_size(out), len(selection.ids), shown)
    _require_weights_only(selection, format)
    with _name_unfound_model(model is None), atomic_folder(out, overwrite) as folder:
        if format == "peft":
            part = _peft(folder, selection, base, max_rank, trust)
        elif format == "merged":
            part = _merged(folder, selection, base, trust)
        else:
            part = _delta(folder, selection)
        write_edits(folder, selection)
        imports, code, head, notes, kept = part
        asked = asking_example(selection, "PATH" if format == "merged" else json.dumps(base))
        if asked and format != "delta":
            imports = [*imports[:-1], "from transformers import AutoTokenizer", ""]
            use_code = f"{code}\n{asked}"
        else:
            use_code = code
        # The folder may be moved with its card, so the card uses the folder's name, not its path.
        use = "\n".join([*imports, use_code.replace("PATH", json.dumps(out.name))])
        write_card(folder, selection, {"tags": TAGS, **head}, use, notes)
    shown = code.rpartition("\n")[2].replace("PATH", json.dumps(str(out)))
    return Exported(out, human_size(out), len(selection.ids), shown, kept)


def _require_weights_only(selection: Selection, format: Format) -> None:  # noqa: A002  # as above
    """Refuse edits that act at run time in a format that holds weights."""
    for delta in selection.deltas:
        if delta.state or delta.prompts:
            raise ExportError(
                f"the edit of {', '.join(delta.request_ids[:4])} acts at run time (it holds "
                f"{', '.join([*delta.state, *(['prompts'] if delta.prompts else [])][:4])}), which "
                f"--format {format} cannot hold, since it holds updates of weights only; use "
                "--format runtime"
            )


@contextmanager
def _name_unfound_model(as_recorded: bool) -> Iterator[None]:
    """Say how to name a model that is no longer where the run has read it."""
    try:
        yield
    except ModelLoadError as error:
        if not as_recorded:
            raise
        raise ModelLoadError(
            f"{error}. The run has recorded this model; if it lies elsewhere now, or was given by "
            "a relative path, name it with --model"
        ) from error


class _FormatResult(NamedTuple):
    imports: list[str]
    code: str
    """Python code that loads the export; PATH is a placeholder for the folder."""
    head: dict[str, object]
    notes: list[str]
    kept: float = 1.0


def _peft(
    folder: Path, selection: Selection, base: str, max_rank: int | None, trust: bool
) -> _FormatResult:
    kept = write_adapter(folder, combine(selection), base, max_rank, trust)
    auto = auto_class(load_config(base, trust_remote_code=trust)).__name__
    note = f"The rank was cut: at least {kept:.2%} of each squared update was kept."
    if kept > EXACT:
        note = "The adapter adds the edits exactly; alpha / rank is 1 in every layer."
    # Else transformers takes the checkpoint's own type, in which the edits may read otherwise.
    dtype = json.dumps(selection.language_model("dtype"))
    load = (
        f"from transformers import {auto}",
        f"{auto}.from_pretrained({json.dumps(base)}, dtype={dtype})",
    )
    if base in PACKAGED:  # transformers cannot resolve the name of a packaged model
        module = "lightning_edit.models.loading"
        name = "" if base == ATLAS else json.dumps(base)
        load = f"from {module} import load_language_model", f"load_language_model({name})[0]"
    return _FormatResult(
        ["from peft import PeftModel", load[0], ""],
        f"base_model = {load[1]}\nmodel = PeftModel.from_pretrained(base_model, PATH)",
        {"library_name": "peft", **base_model(base)},
        [note],
        kept,
    )


def _merged(folder: Path, selection: Selection, base: str, trust: bool) -> _FormatResult:
    write_checkpoint(folder, selection, base, trust)
    auto = auto_class(load_config(base, trust_remote_code=trust)).__name__
    return _FormatResult(
        [f"from transformers import {auto}", ""],
        f'model = {auto}.from_pretrained(PATH, dtype="auto")',
        {"library_name": "transformers", **base_model(base)},
        [],
    )


def _delta(folder: Path, selection: Selection) -> _FormatResult:
    combine(selection).save(folder / DELTA)
    return _FormatResult(
        ["from pathlib import Path", "from lightning_edit.edits.delta import Delta", ""],
        f'delta = Delta.load(Path(PATH) / "{DELTA}")',
        {"library_name": "lightning-edit"},
        ["`with delta.applied(model):` adds the edits and takes them back."],
    )
