"""UltraEdit's turn and the scoring of a record, in the passes that their authors' programs run.

UltraEdit (arXiv 2505.14679): mini-batches in padded rows, the whole network and the head at every
position, ``backward`` with gradients of the edited weights, one dense system a module in single
precision. Their program also writes keys and gradients to disk between the two halves; this one
does not. Scoring (ROME, arXiv 2202.05262): a record a pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from stopwatch import Stopwatch
from torch import Tensor

from lightning_edit.editors import UltraEdit
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.outcomes import ScoredProbe
from lightning_edit.functional.padding import pad, prediction_places
from lightning_edit.inference.hooks import Side, capture
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.types import EditRequest, Encoded


class _Running:
    """Running mean and variance with the update of the authors' code, in single precision."""

    def __init__(self, width: int) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(width), torch.zeros(width)

    def update(self, rows: Tensor) -> None:
        size, total = len(rows), self.count + len(rows)
        apart = rows.mean(0) - self.mean
        self.mean = self.mean + apart * size / total
        spread = size * rows.var(0) if size > 1 else torch.zeros_like(self.squares)
        self.squares = self.squares + spread + apart.square() * self.count * size / total
        self.count = total

    def __call__(self, rows: Tensor) -> Tensor:
        tiny = torch.finfo(torch.float32).eps
        return (rows - self.mean) / ((self.squares / (self.count - 1 + tiny)).sqrt() + tiny)


class UltraEditReference:
    """One turn of UltraEdit on a model that was not edited before.

    Args:
        editor: Gives model, modules and hyper-parameters; its ``eta`` must be a number.
        clock: Takes the time of ``search`` (the gradients) and ``solve``.
    """

    def __init__(self, editor: UltraEdit, clock: Stopwatch) -> None:
        self.editor, self.clock, self.model = editor, clock, editor.language_model
        self.layers = {name: self.model.get_submodule(name) for name in editor._names}

    def edit(self, requests: Sequence[EditRequest]) -> dict[str, Tensor]:
        """Return the update of every edited weight, (outputs, inputs)."""
        with self.clock.stage("search"):
            tokens, running = self._read(encode_batch(self.editor.tokenizer, requests).encoded)
        with self.clock.stage("solve"):
            return {
                f"{name}.weight": self._solve(keys, gradients, running[self._shape(name)])
                for name, (keys, gradients) in tokens.items()
            }

    def _shape(self, name: str) -> torch.Size:
        return self.layers[name].weight.shape

    def _read(
        self, items: Sequence[Encoded]
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[torch.Size, _Running]]:
        size = self.editor.batch_size
        ordered = sorted(items, key=lambda item: -len(item.prompt_ids) - len(item.target_ids))
        found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.layers}
        running: dict[torch.Size, _Running] = {}
        for layer in self.layers.values():
            layer.weight.requires_grad_(True)
        for start in range(0, len(ordered), size):
            for name, pair in self._factors(ordered[start : start + size]).items():
                found[name].append(pair)
                rows = torch.cat(pair, dim=1)
                running.setdefault(self._shape(name), _Running(rows.shape[1])).update(rows)
        for layer in self.layers.values():
            layer.weight.requires_grad_(False)
            layer.weight.grad = None
        joined = {
            name: tuple(map(torch.cat, zip(*each, strict=True))) for name, each in found.items()
        }
        return joined, running

    def _factors(self, part: Sequence[Encoded]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return each layer's keys and output gradients at the answers of one mini-batch."""
        ids, mask = pad([(*item.prompt_ids, *item.target_ids) for item in part])
        places = prediction_places(
            [len(item.prompt_ids) for item in part], [len(item.target_ids) for item in part]
        )
        targets = torch.tensor([token for item in part for token in item.target_ids])
        wanted: dict[str, Side] = dict.fromkeys(self.layers, "both")
        with torch.enable_grad(), capture(self.model, wanted) as seen:
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for name in self.layers:
                seen[f"{name}@output"].retain_grad()
            torch.nn.functional.cross_entropy(logits[places], targets).backward()
        return {name: _at(seen, name, places) for name in self.layers}

    def _solve(self, keys: Tensor, gradients: Tensor, running: _Running) -> Tensor:
        scaled = running(torch.cat([keys, gradients], dim=1))
        unit_keys, unit_gradients = scaled.split([keys.shape[1], gradients.shape[1]], dim=1)
        shifts = -self.editor.eta * unit_keys.square().sum(1, keepdim=True) * unit_gradients
        total = keys.mT @ keys + torch.eye(keys.shape[1])
        return torch.linalg.solve(total, keys.mT @ shifts).mT


def _at(seen: dict[str, Any], name: str, places: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    gradient = seen[f"{name}@output"].grad
    return seen[f"{name}@input"].detach()[places].float(), gradient[places].float()


@torch.no_grad()
def force_by_case(
    model: Any, tokenizer: Any, cases: Sequence[Sequence[ScoredProbe]]
) -> list[list[float]]:
    """Return the token losses of each case, all its prompts and answers in one padded pass.

    That is how the authors of ROME and MEMIT score a record: the head runs at every position.
    """
    found = []
    for probes in cases:
        asked = [
            (item.probe.prompt, text)
            for item in probes
            for text in [*item.probe.answers, *([item.contrast] if item.contrast else [])]
        ]
        pairs = list(PromptEncoder.of(tokenizer).pairs(asked))
        ids, mask = pad([prompt + answer for prompt, answer in pairs])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        losses = []
        for row, (prompt, answer) in enumerate(pairs):
            for step, token in enumerate(answer):
                line = torch.log_softmax(logits[row, len(prompt) - 1 + step], dim=0)
                losses.append(-float(line[token]))
        found.append(losses)
    return found
