"""Edits that did not write their answer: said at the end of a run, with what to turn."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lightning_edit.editors.stronger import to_write_more
from lightning_edit.functional.visible import visible

log = logging.getLogger(__name__)

#: An edit has hardly moved its target if the new answer has kept this share of the negative
#: log-likelihood that it had on the pristine model, and is still not the answer.
KEPT_SHARE = 0.9
#: Edits that moved their target and did not reach it are named where more than this share of all
#: edits has not written its answer.
TOO_MANY = 0.5


class Unwritten(NamedTuple):
    """Edits whose answer the model does not give at the end of a run.

    Args:
        unmoved: Ids of edits whose new answer is about as improbable as before.
        short: Ids of edits whose new answer is more probable than before, but not the answer.
        looked: Number of edits that were looked at: those whose answer was scored teacher forced,
            before and after.
        endless: Ids of edits whose answer the model gives, and goes on from.
    """

    unmoved: list[str]
    short: list[str]
    looked: int
    endless: list[str]


def unwritten(rows: Iterable[Mapping[str, Any]]) -> Unwritten:
    """Find the edits whose answer the model does not give at the end.

    Args:
        rows: Rows of ``cases.jsonl``; of each edit's own prompt the last one counts.
    """
    last = {row["edit_id"]: row for row in rows if row["kind"] == "rewrite"}
    unmoved: list[str] = []
    short: list[str] = []
    endless: list[str] = []
    looked = 0
    for name, row in last.items():
        after, before = row["measures"], (row.get("pristine") or {}).get("measures", {})
        if "nll@tf" not in after or "nll@tf" not in before:
            continue
        looked += 1
        if max(after.get("answer@gen", 0.0), after.get("em@tf", 0.0)) == 1.0:
            endless += [name] if after.get("em@gen", 1.0) < 1.0 else []
            continue
        moved = after["nll@tf"] < KEPT_SHARE * before["nll@tf"]
        (short if moved else unmoved).append(name)
    return Unwritten(unmoved, short, looked, endless)


def say_unwritten(
    rows: Iterable[Mapping[str, Any]], editor: Any, end_answers: bool = False
) -> None:
    """Log a warning that names edits without effect, and the settings that would strengthen them.

    Args:
        rows: Rows of ``cases.jsonl``.
        editor: The editor of the run.
        end_answers: Whether answers were to be written with their end.
    """
    unmoved, short, looked, endless = unwritten(rows)
    texts = []
    if unmoved:
        texts.append(
            f"{len(unmoved)} of {looked} edits hardly moved their own target, or were lost again: "
            f"the model finds the new answer about as improbable as before ({_shown(unmoved)})."
        )
    if short and len(unmoved) + len(short) > TOO_MANY * looked:
        texts.append(
            f"{len(short)} of {looked} edits made the new answer more probable than before, but "
            f"the model still gives another one ({_shown(short)})."
        )
    if endless and end_answers:
        texts.append(
            f"{len(endless)} of {looked} edits wrote their answer but not its end, which "
            f"end_answers (--lm_end_answers) asks for: the model goes on from it "
            f"({_shown(endless)})."
        )
    if texts:
        log.warning("%s %s", " ".join(texts), to_write_more(editor))


def _shown(names: Sequence[str]) -> str:
    return visible(", ".join(names[:4]) + (", …" if len(names) > 4 else ""))
