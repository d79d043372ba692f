"""What few tokens cost: edits with statistics of much text, of little text, and with none.

Run:  python benchmarks/quality/quick_statistics.py --edits 100

The text is the embedded model's own, shuffled. Every request is edited alone and scored. Written to
benchmarks/results/quick_statistics.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import lightning_edit.editors as editors
from lightning_edit import atlas
from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors.locate.targets import Targets
from lightning_edit.edits.edit_loop import written_alone
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.functional.shrinkage import Target
from lightning_edit.metrics.aspects import summarise
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.view import resolve
from lightning_edit.statistics.collect import collect
from lightning_edit.statistics.moments import Moments

SHOWN = (
    "reliability/em@tf",
    "generalization/em@tf",
    "locality.neighborhood/em@tf",
    "locality/kept@tf",
)

#: Editors by label, with published settings. λ is the width of a key, 640; a second value shows its
#: part.
EDITORS: dict[str, tuple[str, dict[str, Any]]] = {
    "ROME": ("ROME", {}),
    "MEMIT": ("MEMIT", {"moment_weight": None, "clamp": 0.75}),
    "MEMIT, lambda 64": ("MEMIT", {"moment_weight": 64.0, "clamp": 0.75}),
    "AlphaEdit": ("AlphaEdit", {"norm_weight": 10.0, "null_threshold": 0.1, "clamp": 0.75}),
}

#: Tokens and shrinkage by name; "in order" is the beginning of the text, sorted by relation.
VARIANTS: dict[str, tuple[int | None, Target | None]] = {
    "full": (None, None),
    "50k, in order": (50_000, None),
    "20k": (20_000, None),
    "20k, identity": (20_000, "identity"),
    "20k, diagonal": (20_000, "diagonal"),
    "2k": (2_000, None),
    "2k, identity": (2_000, "identity"),
    "2k, diagonal": (2_000, "diagonal"),
    "500": (500, None),
    "500, identity": (500, "identity"),
    "500, diagonal": (500, "diagonal"),
}


class Bench:
    """The embedded model, the facts to edit, and their probes."""

    def __init__(self, edits: int, split: str) -> None:
        self.model, self.tokenizer = load_language_model("atlas")
        self.requests = AtlasDataModule(limit=edits, split=split).edit_requests()
        self.probes = {request.id: probes_of(request) for request in self.requests}
        self.scorer = Scorer(self.model, self.tokenizer, modes=("tf",))
        every = [probe for each in self.probes.values() for probe in each]
        self.baseline = Baseline(self.scorer.score(every))
        self.targets: dict[str, Targets] = {}

    def statistics(self, label: str) -> tuple[Moments, float]:
        """Collect from the text, shuffled or in order; return the processor seconds too."""
        (tokens, target) = VARIANTS[label]
        texts = atlas.corpus(shuffled="in order" not in label)
        layers = range(resolve(self.model).num_blocks)
        begin = time.process_time()
        found = collect(self.model, self.tokenizer, texts, layers, tokens, shrinkage=target)
        return found, time.process_time() - begin

    def score(self, name: str, arguments: dict[str, Any], statistics: str) -> dict[str, float]:
        """Edit every request alone, and score it.

        The targets do not depend on the statistics, so an editor searches them once.
        """
        editor = getattr(editors, name)(statistics=statistics, **arguments)
        editor.bind(self.model, self.tokenizer)
        batch = encode_batch(self.tokenizer, self.requests)
        if name not in self.targets:
            self.targets[name] = editor.search(batch)
        targets, scores = self.targets[name], []
        deltas = (
            (part, editor.write(part, targets.only(number)))
            for number, part in enumerate(batch.split())
        )
        for part, _ in written_alone(Ledger(self.model), deltas):
            scores += self.baseline.compare(self.scorer.score(self.probes[part.ids[0]]))
        found = summarise(scores)
        return {metric: round(found[metric], 4) for metric in SHOWN}


def rows(bench: Bench, names: list[str], folder: Path, console: Console) -> list[dict[str, Any]]:
    """Measure every editor with every variant of the statistics."""
    found = []
    for label in [*VARIANTS, "identity"]:
        source, facts = "identity", {"tokens": 0, "cpu_seconds": 0.0}
        if label != "identity":
            moments, seconds = bench.statistics(label)
            moments.save(folder / f"{label}.safetensors")
            source = str(folder / f"{label}.safetensors")
            facts = {"tokens": moments.tokens, "cpu_seconds": round(seconds, 1)}
            if moments.target:
                shares = moments.intensities.values()
                facts["intensities"] = [round(share, 3) for share in shares]
        for name in names:
            row: dict[str, Any] = {"editor": name, "statistics": label, **facts}
            try:
                row["metrics"] = bench.score(*EDITORS[name], source)
            except ArithmeticError as error:
                row["refused"] = str(error)
            console.print(json.dumps(row))
            found.append(row)
    return found


def main() -> None:
    """Measure, print a table and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--split", default="val")
    parser.add_argument("--editors", nargs="+", default=list(EDITORS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    console = Console(width=160, stderr=True)
    bench = Bench(options.edits, options.split)
    with tempfile.TemporaryDirectory() as folder:
        found = rows(bench, options.editors, Path(folder), console)
    record = {
        "command": f"python benchmarks/quality/quick_statistics.py --edits {options.edits}",
        "model": "atlas",
        "split": options.split,
        "edits": len(bench.requests),
        "width": resolve(bench.model).intermediate_size,
        "machine": machine(),
        "rows": found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "quick_statistics.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    table = Table("editor", "statistics", *SHOWN)
    for row in found:
        figures = row.get("metrics", {})
        table.add_row(
            row["editor"], row["statistics"], *(str(figures.get(name, "–")) for name in SHOWN)
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
