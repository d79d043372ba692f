"""Edits layer by layer, where a norm behind each MLP bounds what one layer can write.

Behind a norm (Gemma 2 and 3, OLMo 2, GLM-4) an MLP adds a vector of bounded length, however long
its own output is. Where that of the last edited layer is short beside the hidden state, no vector
there makes an answer likely, so a target that is searched there is none. Then each layer, lowest
first, gets a search of its own, on the model with the lower ones written, and writes all of it:
what the layers can add together is what counts. This is no part of MEMIT (arXiv 2210.07229), whose
models have no such norm.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.edits.delta import Delta
from lightning_edit.types import EditBatch

#: An answer is out of reach above this negative log-likelihood, in nats per token: with the
#: searched vector added it is less likely than all other answers together.
UNLIKELY = 0.7
#: What a layer's search must win for an answer, in nats, for its distance to count: a vector of
#: next to no length is not missed.
GAIN = 0.5


def out_of_reach(info: Mapping[str, Any], passes: int) -> bool:
    """Return whether a search has used all its passes for an answer and not reached it.

    Args:
        info: Diagnostics of the edit.
        passes: Passes of the search with its first bound. A search with fewer ended by its own
            rule, such as ENCORE's, whose small vectors are wanted.
    """
    searched = zip(info["nll_searched"], info["steps"], strict=True)
    return any(not nll <= UNLIKELY and steps >= passes - 1 for nll, steps in searched)


def unlikely(info: Mapping[str, Any]) -> int:
    """Return how many answers the edited model finds less likely than all others together.

    Args:
        info: Diagnostics of the edit.
    """
    return sum(not nll <= UNLIKELY for nll in info["nll_edited"])


def edit_layer_by_layer(
    editor: LocateThenEdit, batch: EditBatch, edit: Callable[[EditBatch], Delta]
) -> Delta:
    """Search and solve each edited layer alone, lowest first, with those below it written.

    Args:
        editor: The editor, whose layers are set one at a time; they are as before in the end.
        batch: The requests.
        edit: Searches and solves with the editor's layers, and leaves the model as it is.

    Returns:
        One delta of all layers. Its ``info`` says what ``auto`` was in the last layer, and of all
        layers the widest bound.
    """
    given, layers = editor.layers, editor.edited_layers
    deltas, clamps = [], []
    try:
        with ExitStack() as written:
            for number in layers:
                editor.layers = [number]
                deltas.append(edit(batch))
                clamps.append(editor.chosen["clamp"])
                written.enter_context(deltas[-1].applied(editor.language_model))
    finally:
        editor.layers = given
    widest = max(clamps)
    editor.chose({"clamp": widest})
    return _joined(deltas, widest)


def _joined(deltas: Sequence[Delta], clamp: float) -> Delta:
    """Return one delta with what each layer writes; its search is that of all.

    Args:
        deltas: Those of the layers, lowest first.
        clamp: The widest bound of their searches.
    """
    first, last = deltas[0], deltas[-1]
    infos = [delta.info for delta in deltas]
    columns = [
        zip(one["nll_before"], one["nll_searched"], one["site_distance"], strict=True)
        for one in infos
    ]
    distances = [_worst(each) for each in zip(*columns, strict=True)]
    info = dict(last.info) | {
        "site_distance": distances,
        "nll_before": first.info["nll_before"],
        "steps": [sum(each) for each in zip(*(one["steps"] for one in infos), strict=True)],
        "auto": dict(last.info["auto"]) | {"clamp": clamp},
        "layer_by_layer": True,
    }
    for name in ("unwritten", "condition"):
        info[name] = [value for one in infos for value in one[name]]
    return Delta(
        last.request_ids,
        {name: update for delta in deltas for name, update in delta.weights.items()},
        info=info,
        history={name: value for delta in deltas for name, value in delta.history.items()},
        columns={name: owners for delta in deltas for name, owners in delta.columns.items()},
    )


def _worst(layers: Sequence[tuple[float, float, float]]) -> float:
    """Return the largest distance to a target of the layers whose search changed an answer.

    Args:
        layers: Of each, the answer's negative log-likelihood before and after the search, and the
            distance.
    """
    told = [distance for before, searched, distance in layers if before - searched >= GAIN]
    return max(told or [distance for *_, distance in layers])
