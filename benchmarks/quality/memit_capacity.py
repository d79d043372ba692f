"""How many facts MEMIT can write at once into a model: what of its targets a weight can take.

Run:  python benchmarks/quality/memit_capacity.py --out benchmarks/results/memit_capacity.json

MEMIT solves for one matrix a layer that takes a key to a value for every fact. Keys are as wide as
the down-projection's input (640 on the embedded model): more facts than that have no matrix that
takes every key to its value, and fewer have one only at the cost of all else. Target vectors of the
facts are searched once and written in batches of several sizes and weights λ of what is preserved.
Prints for each batch how many new answers are right (every token the most probable one, teacher
forced), the median part of a target vector that is missing behind the last edited layer, the part
of the norm of the last layer's residuals that no matrix can write even without λ, and the share of
answers to neighbours that are not edited themselves and stay. Facts that clash have one text up to
their subject and other answers: of those one at most can be written by a key that reads no further.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import MEMIT
from lightning_edit.editors.locate.solver import LeastSquares
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Statement
from lightning_edit.models.loading import load_language_model
from lightning_edit.types import EditBatch, EditRequest

#: Neighbours that are asked, at most.
_NEIGHBOURS = 300


def best(responder: ModelResponder, statements: Sequence[Statement]) -> list[tuple[int, ...]]:
    """Return the most probable token at each place of each answer."""
    return [one.best for one in responder.loglikelihood(statements)]


def right(responder: ModelResponder, requests: Sequence[EditRequest]) -> float:
    """Return the share of new answers all tokens of which are the most probable ones."""
    asked = [Statement(one.prompt, one.target, one.separator) for one in requests]
    found = responder.loglikelihood(asked)
    return mean(one.best == one.tokens for one in found)


def neighbours(requests: Sequence[EditRequest]) -> list[Statement]:
    """Return questions about neighbours whose answers no request edits, with their answers."""
    edited = {one.subject for one in requests if one.subject}
    found = [
        Statement(probe.prompt, probe.answers[0], request.separator)
        for request in requests
        for probe in request.probes
        if probe.kind == "neighborhood" and not any(name in probe.prompt for name in edited)
    ]
    unique = list(dict.fromkeys(found))
    random.Random(0).shuffle(unique)
    return unique[:_NEIGHBOURS]


def clashing(requests: Sequence[EditRequest]) -> int:
    """Return how many requests have the text up to their subject in common, and not the answer."""
    asked: dict[str, set[str]] = {}
    heads = []
    for one in requests:
        subject = one.subject or ""
        heads.append(one.prompt[: one.prompt.rindex(subject) + len(subject)])
    for head, one in zip(heads, requests, strict=True):
        asked.setdefault(head, set()).add(one.target)
    return sum(len(asked[head]) > 1 for head in heads)


def floor(keys: Tensor, residuals: Tensor) -> float:
    """Return the part of residuals, (n, d), that no matrix writes at keys, (n, f)."""
    basis = torch.linalg.svd(keys.double(), full_matrices=False)
    kept = basis.U[:, (basis.S / basis.S[0]) > 1e-8]
    wanted = residuals.double()
    return float((wanted - kept @ (kept.mT @ wanted)).norm() / wanted.norm())


def batches(
    editor: MEMIT, batch: EditBatch, sizes: Sequence[int], weights: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Write the first so many requests with each weight, and yield what came of it."""
    with torch.inference_mode(False), torch.enable_grad():
        targets = editor.search(batch)
    model = editor.language_model
    responder = ModelResponder(model, editor.prompts)
    reached = torch.tensor(targets.nll).exp().reciprocal() > 0.5
    for size in sizes:
        part = EditBatch(batch.requests[:size], batch.encoded[:size], batch.seed)
        some, texts = targets.select(range(size)), editor.key_texts(part)
        asked = neighbours(part.requests)
        before = best(responder, asked)
        for weight in weights:
            editor.solver = LeastSquares(weight)
            for layer in editor.bound_layers.values():
                layer.forget_factors()
            with editor.solve_layers(texts, some) as solved:
                last = editor.edited_layers[-1]
                missing = editor.residual(some, texts[:: editor.texts_per_request]).norm(dim=1)
                after = best(responder, asked)
                yield {
                    "layers": editor.edited_layers,
                    "facts": size,
                    "clashing": clashing(part.requests),
                    "key_width": solved.keys[last].shape[1],
                    "moment_weight": weight,
                    "target_alone_likely": round(float(reached[:size].float().mean()), 3),
                    "right": round(right(responder, part.requests), 3),
                    "missing": round(float((missing / some.delta.norm(dim=1)).median()), 3),
                    "floor": round(floor(solved.keys[last], solved.residuals[last]), 3),
                    "kept": round(mean(a == b for a, b in zip(after, before, strict=True)), 3),
                    "neighbours": len(asked),
                }


def main() -> None:
    """Search, write, print a table, and keep the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", action="append")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 250, 500, 1000])
    parser.add_argument("--weights", type=float, nargs="+", default=[5000.0, 1000.0, 200.0, 20.0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model, tokenizer = load_language_model("atlas")
    data = AtlasDataModule(limit=max(options.sizes), split="train")
    data.prepare_data()
    batch = encode_batch(tokenizer, data.edit_requests())
    found: list[dict[str, Any]] = []
    for layers in options.layers or [[0, 1], [0, 1, 2]]:
        editor = MEMIT(layers=layers, steps=40, clamp=2.0).bind(
            model.requires_grad_(False), tokenizer
        )
        found += batches(editor, batch, options.sizes, options.weights)
    table = Table("layers", "facts", "λ", "target alone", "right", "missing", "floor", "kept")
    for one in found:
        table.add_row(
            " ".join(map(str, one["layers"])), str(one["facts"]), f"{one['moment_weight']:g}",
            *(f"{one[name]:.2f}" for name in
              ("target_alone_likely", "right", "missing", "floor", "kept")),
        )  # fmt: skip
    Console().print(table)
    if options.out is not None:
        options.out.write_text(
            json.dumps({"machine": machine(), "batches": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
