"""Editors with a known fault, which measures must show."""

from dataclasses import replace
from typing import Any

import torch

from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta, Dense, LowRank
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch, EditRequest


class Wrapping(Editor, family=True):
    """Edits with another editor, and changes what comes of it."""

    def __init__(self, editor: Editor) -> None:
        super().__init__()
        self.editor = editor

    def on_bind(self) -> None:
        self.editor.bind(self.language_model, self.tokenizer)

    def edit(self, batch: EditBatch) -> Delta:
        return self.editor.edit(batch)


class DoesNothing(Wrapping):
    """Its updates are zero."""

    def edit(self, batch: EditBatch) -> Delta:
        name = self.view.parameter(0)
        return Delta(batch.ids, {name: Dense(torch.zeros(weight(self.language_model, name).shape))})


class Destroys(Wrapping):
    """Ruins the model with the edits of some requests: noise on the embedding, or an infinity."""

    def __init__(self, editor: Editor, at: tuple[str, ...], scale: float = 30.0) -> None:
        super().__init__(editor)
        self.at = at
        self._scale = scale  # not a setting: an infinite one is refused

    def edit(self, batch: EditBatch) -> Delta:
        if not set(batch.ids) & set(self.at):
            return self.editor.edit(batch)
        model = self.language_model
        table = model.get_input_embeddings().weight
        name = next(name for name, value in model.named_parameters() if value is table)
        noise = torch.randn(weight(model, name).shape, generator=torch.Generator().manual_seed(0))
        return Delta(batch.ids, {name: Dense(noise * self._scale)})


class Overflows(Wrapping):
    """Tries values of a weight that it cannot hold, with the edits of some requests."""

    def __init__(self, editor: Editor, at: tuple[str, ...]) -> None:
        super().__init__(editor)
        self.at = at

    def edit(self, batch: EditBatch) -> Delta:
        if set(batch.ids) & set(self.at):
            held = weight(self.language_model, self.view.parameter(0))
            held.write(torch.full(held.shape, torch.inf))
        return self.editor.edit(batch)


class Forgets(Wrapping):
    """Takes the edit before out again with each new one."""

    def __init__(self, editor: Editor) -> None:
        super().__init__(editor)
        self.last: Delta | None = None

    def edit(self, batch: EditBatch) -> Delta:
        if self.last is not None:
            with self._without(self.last).applied(self.language_model):
                found = self.editor.edit(batch)
            weights = {
                name: LowRank(
                    torch.cat([new.left, -old.left], 1), torch.cat([new.right, old.right])
                )
                for name, new in found.weights.items()
                for old in [self.last.weights[name]]
            }
        else:
            found = self.editor.edit(batch)
            weights = dict(found.weights)
        self.last = found
        return replace(found, weights=weights)

    @staticmethod
    def _without(delta: Delta) -> Delta:
        updates = {name: LowRank(-u.left, u.right) for name, u in delta.weights.items()}
        return Delta((), updates)


class Leaks(Wrapping):
    """Writes the new answer into the other questions about the subject as well."""

    def edit(self, batch: EditBatch) -> Delta:
        requests = [one for request in batch.requests for one in _everywhere(request)]
        found = self.editor.edit(encode_batch(self.tokenizer, requests, batch.seed))
        return replace(found, request_ids=batch.ids)


def _everywhere(request: EditRequest) -> list[EditRequest]:
    prompts = [
        probe.prompt
        for probe in request.probes
        if probe.expect == "unchanged" and str(request.subject) in probe.prompt
    ]
    return [
        EditRequest(f"{request.id}-{number}", prompt, request.target, request.subject)
        for number, prompt in enumerate([request.prompt, *prompts])
    ]


class NeverStops(Wrapping):
    """Writes an answer that goes on: right token by token, and wrong as a text."""

    def edit(self, batch: EditBatch) -> Delta:
        longer = [_longer(request) for request in batch.requests]
        return self.editor.edit(encode_batch(self.tokenizer, longer, batch.seed))


def _longer(request: EditRequest) -> EditRequest:
    return replace(request, target=f"{request.target} of {request.target} of")


def toy_texts(count: int = 12) -> list[str]:
    """Texts of the toy model's words."""
    return [f"the capital of land{i} is city{i % 40} . what is land{i + 1} ?" for i in range(count)]


def without_times(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the points of a run without what differs from machine to machine."""
    return [
        point
        | {
            part: {k: v for k, v in point[part].items() if not k.endswith(("_seconds", "_bytes"))}
            for part in ("metrics", "before")
        }
        for point in results["points"]
    ]
