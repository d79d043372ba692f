"""Why KN writes half of its answers into a T5 and none into a Llama: what it adds, and to what.

Run:  python benchmarks/quality/kn_head_rows.py GRID/cells/*-statements-single-KN-* \
        --out benchmarks/results/kn_head_rows.json

KN adds -λ₁ e(old) + λ₂ e(new) to the columns of a few neurons of an MLP, where e is a token's
embedding. Each edit of a run is applied again with other vectors in the same columns: rows of the
output head in place of embeddings, the same with the sign of each neuron's activation where the
answer is predicted, and random directions. Prints how many new answers the edited model then gives
(every token the most probable one, teacher forced), the median rank of their first token, and how
large the written vector is beside the hidden state before the last norm.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.hooks import capture
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.models.view import ModelView, resolve
from lightning_edit.storage.run_folder import RunFolder

#: What is written: the vectors e, whether both answers or one, and the signs of the neurons.
VARIANTS = {
    "as published": ("embeddings", "both", False),
    "new answer alone": ("embeddings", "new", False),
    "old answer alone": ("embeddings", "old", False),
    "random directions": ("random", "both", False),
    "rows of the head": ("head", "both", False),
    "rows of the head, signed": ("head", "both", True),
}


class Columns:
    """The columns that an edit changes, and what goes through them where the answer is predicted.

    Args:
        view: The unedited model.
        delta: The edit.
        row: Prompt and new answer.
    """

    @torch.no_grad()
    def __init__(self, view: ModelView, delta: Delta, row: AnswerRow) -> None:
        assert view.final_norm is not None
        rows, norm = AnswerRows.of(view.model, [row]), view.name_of(view.final_norm)
        self.right = {name: part(update).right for name, update in delta.weights.items()}
        modules = {name: name.removesuffix(".weight") for name in self.right}
        with capture(view.model, {norm: "input", **dict.fromkeys(modules.values(), "input")}) as at:
            view.model(**rows.inputs)
        place = (rows.rows[0], rows.positions[0])
        self.hidden = at[norm][place].norm()
        self.activations = {name: at[module][place] for name, module in modules.items()}

    def update(self, vector: Tensor, signed: bool) -> Delta:
        """Return the edit that adds a vector to the columns, over their norms."""
        weights = {}
        for name, right in self.right.items():
            signs = self.activations[name].sign()[None] if signed else torch.ones_like(right)
            weights[name] = LowRank(vector[:, None], right * signs)
        return Delta((), weights)

    def written(self, delta: Delta) -> float:
        """Return the norm of what an edit adds at the answer, over that of the hidden state."""
        parts = [
            part(delta.weights[name]).left @ (part(delta.weights[name]).right @ activation)
            for name, activation in self.activations.items()
        ]
        return float(torch.stack(parts).sum(0).norm() / self.hidden)

    def positive(self) -> list[bool]:
        """Return of each neuron whether its activation is above zero."""
        each = [self.activations[n][right[0] != 0] > 0 for n, right in self.right.items()]
        return [bool(one) for listed in each for one in listed]


def part(update: Any) -> LowRank:
    """Return an update of KN, which is of rank one."""
    assert isinstance(update, LowRank)
    return update


def vector(
    table: Tensor, parts: str, new: Sequence[int], old: Sequence[int], options: dict[str, Any]
) -> Tensor:
    """Return what KN adds to a column of norm one.

    Args:
        table: A vector for each token.
        parts: ``new``, ``old`` or ``both``.
        new: Tokens of the new answer.
        old: Tokens of the old answer.
        options: The editor's λ₁ and λ₂.
    """
    wanted, unwanted = table[list(new)].sum(0), table[list(old)].sum(0)
    added = options["add"] * wanted / wanted.norm() * (parts != "old")
    return added - options["subtract"] * unwanted / unwanted.norm() * (parts != "new")


def measure(run: Path) -> dict[str, Any]:
    """Apply the edits of a run again, one by one, in every variant.

    Args:
        run: Folder of a run of KN with the protocol ``single``.
    """
    record = json.loads(RunFolder(run).results.read_text())
    name, options = record["language_model"]["name"], record["editor"]["args"]
    model, tokenizer = load_language_model(name)
    view, prompts = resolve(model), PromptEncoder.for_model(model, tokenizer)
    embeddings = model.get_input_embeddings().weight.detach()
    head = model.get_output_embeddings().weight.detach()
    noise = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
    tables = {"embeddings": embeddings, "head": head, "random": noise}
    data = record["data"]["args"]
    module = AtlasDataModule(limit=data["limit"], split=data["split"], questions=data["questions"])
    requests = {request.id: request for request in module.edit_requests()}
    found: dict[str, list[dict[str, Any]]] = {one: [] for one in ("unedited", *VARIANTS)}
    counts, blocks, positive = [], Counter[int](), []
    for file in sorted(RunFolder(run).ledger.glob("*.safetensors")):
        delta = Delta.load(file)
        request = requests[delta.request_ids[0]]
        texts = [
            PromptText(request.prompt, answer, separator=request.separator)
            for answer in (request.target, request.old_target)
        ]
        told, before = prompts.encode(texts)
        row: AnswerRow = (told.prompt, told.answer)
        columns, rows = Columns(view, delta, row), AnswerRows.of(model, [row])
        positive += columns.positive()
        (neurons,) = delta.info["neurons"]
        counts.append(len(neurons))
        blocks.update(layer for layer, _ in neurons)
        for variant, scores in found.items():
            change, share = Delta(()), None
            if variant in VARIANTS:
                table, parts, signed = VARIANTS[variant]
                added = vector(tables[table], parts, told.answer, before.answer, options)
                change = columns.update(added, signed)
                share = columns.written(change)
            if variant == "as published":  # the run's own edit, bit for bit or nearly so
                for key, update in delta.weights.items():
                    torch.testing.assert_close(
                        change.weights[key].dense(), update.dense(), rtol=1e-4, atol=1e-5
                    )
            with torch.no_grad(), change.applied(model):
                logits = answer_logits(model, rows)
            right = (logits.argmax(-1) == rows.targets).tolist()
            place = int((logits[0] > logits[0, rows.targets[0]]).sum()) + 1
            one = {"right": all(right), "rank": place, "tokens": len(right), "written": share}
            scores.append(one)
    cosine = torch.nn.functional.cosine_similarity(embeddings, head)
    return {
        "language_model": name,
        "edits": len(counts),
        "cosine_of_embedding_and_head_row": round(float(cosine.mean()), 3),
        "neurons_an_edit": round(mean(counts), 1),
        "neurons_by_block": {str(block): count for block, count in sorted(blocks.items())},
        "activations_above_zero": round(mean(positive), 3),
        "variants": {variant: summary(scores) for variant, scores in found.items()},
    }


def summary(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return means over the edits, and right answers by their number of tokens."""
    tokens: dict[str, list[bool]] = {}
    for one in scores:
        tokens.setdefault(str(min(one["tokens"], 4)), []).append(one["right"])
    written = [one["written"] for one in scores if one["written"] is not None]
    return {
        "right": round(mean(one["right"] for one in scores), 3),
        "median_rank_of_first_token": median(one["rank"] for one in scores),
        "right_by_tokens": {
            f"{count} or more" if count == "4" else count: [sum(right), len(right)]
            for count, right in sorted(tokens.items())
        },
        "written_over_hidden_state": round(median(written), 2) if written else None,
    }


def main() -> None:
    """Measure the runs, print a table, and keep the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    found = [measure(run) for run in options.runs]
    table = Table("model", "written into the columns", "right", "rank", "by tokens", "over hidden")
    for one in found:
        for variant, values in one["variants"].items():
            by = ", ".join(f"{n}: {a}/{b}" for n, (a, b) in values["right_by_tokens"].items())
            written = values["written_over_hidden_state"]
            table.add_row(
                one["language_model"], variant, f"{values['right']:.2f}",
                f"{values['median_rank_of_first_token']:g}", by, f"{written or 0:.2f}",
            )  # fmt: skip
    console = Console(width=110)
    console.print(table)
    for one in found:
        console.print({key: value for key, value in one.items() if key != "variants"})
    if options.out is not None:
        record = {"machine": machine(), "runs": found}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
