"""Record of a finished run: the content of ``results.json``."""

from typing import TYPE_CHECKING, Any

from lightning_edit.edits.run_journal import journal_end
from lightning_edit.models.loading import adds_bos
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.session.describe import describe
from lightning_edit.session.points import points_of
from lightning_edit.storage.results import build

if TYPE_CHECKING:
    from lightning_edit.datamodules.base import EditDataModule
    from lightning_edit.session.edit_session import EditSession


def settings_of(session: "EditSession", data: "EditDataModule") -> dict[str, Any]:
    """Return what defines a run, as plain values, for loggers.

    Args:
        session: The session.
        data: Data module of its requests.
    """
    return {
        "editor": describe(session.editor),
        "data": describe(data),
        "language_model": str(session.editor.language_model.name_or_path),
        "protocol": session.protocol,
        "batch_size": session.stream.batch_size,
        "seed": session.stream.seed,
    }


def results_of(session: "EditSession", data: "EditDataModule", seconds: float) -> dict[str, Any]:
    """Build the results of a finished run from its session.

    Args:
        session: The session, after its last edit.
        data: Data module of its requests.
        seconds: Wall time of this process's part of the run.

    Returns:
        The content of ``results.json``.
    """
    model = session.editor.language_model
    form = session.editor.prompts.form
    journal = session.ledger.journal
    assert journal is not None  # a session always has a folder
    assert journal.opening is not None  # written before the first edit
    events = [row for row in session.measures.rows if "event" in row]
    stopped = any(row["event"]["action"] == "stop" for row in events)
    return build(
        editor=describe(session.editor),
        language_model={
            **({} if form == PromptFormat() else {"prompts": form.to_dict()}),
            "name": str(model.name_or_path),
            "hash": journal.opening["model"],
            "dtype": str(model.dtype).removeprefix("torch."),
            "bos": adds_bos(session.editor.tokenizer),
        },
        data=describe(data) | {"hash": data.data_hash()},
        protocol=session.protocol,
        batch_size=session.stream.batch_size,
        seed=session.stream.seed,
        points=points_of(
            session.rows, session.evaluation.baseline.to_rows(), session.measures.rows
        ),
        events=events,
        status="interrupted" if stopped else "complete",
        journal=journal_end(journal),
        timing={f"{stage}_seconds": round(value, 3) for stage, value in session.seconds.items()}
        | {"total_seconds": round(seconds, 3), "edits": len(session.stream.requests)},
    )
