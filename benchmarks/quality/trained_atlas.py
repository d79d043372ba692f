"""Train a hypernetwork editor with its atlas recipe, and score it on facts it never saw.

Run:  python benchmarks/quality/trained_atlas.py malmen_atlas
      python benchmarks/quality/trained_atlas.py malmen_batch_atlas
      python benchmarks/quality/trained_atlas.py mend_batch_atlas
      python benchmarks/quality/trained_atlas.py rledit_atlas
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from serac_atlas import about_other_edits

from lightning_edit.benchmark.machine import machine
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import MALMEN, MEND, Editor, RLEdit
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.metrics.aspects import summarise
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Recipe:
    """How a trained editor is scored.

    Args:
        editor: Its class.
        edits: Held-out edits that are scored; ``None``: all.
        size: Edits that are written together; ``None``: every one alone, and taken back.
        sequence: Edits that are in force together; ``None``: as many as ``size``.
    """

    editor: type[Editor]
    edits: int | None
    size: int | None
    sequence: int | None = None


RECIPES = {
    "malmen_atlas": Recipe(MALMEN, None, None),
    "malmen_batch_atlas": Recipe(MALMEN, 500, 100),
    "mend_batch_atlas": Recipe(MEND, 500, 100),
    "rledit_atlas": Recipe(RLEdit, 500, 10, 100),
}


def measure(name: str, edits: int | None, run: Path, size: int | None = None) -> dict[str, Any]:
    """Edit held-out facts as the recipe says, and score them while all of them are in force."""
    recipe = RECIPES[name]
    model, tokenizer = load_language_model("atlas")
    checkpoint = run / "checkpoints/best.ckpt"
    editor: Any = recipe.editor(checkpoint=str(checkpoint)).bind(model, tokenizer)  # type: ignore[call-arg]
    requests = AtlasDataModule(limit=edits or recipe.edits, split="test").edit_requests()
    probes = {request.id: probes_of(request) for request in requests}
    scorer = Scorer(model, tokenizer, modes=("tf",))
    baseline = Baseline(scorer.score([probe for each in probes.values() for probe in each]))
    size = size or recipe.size or 1
    together = recipe.sequence or size
    scores, overlap = [], set()
    cpu = 0.0
    for start in range(0, len(requests), together):
        group = requests[start : start + together]
        ledger = Ledger(model)
        for first in range(0, len(group), size):
            begin = time.process_time()
            part = group[first : first + size]
            delta = editor.edit(encode_batch(tokenizer, part))
            cpu += time.process_time() - begin
            ledger.commit(delta, part)
        told = [probe for request in group for probe in probes[request.id]]
        scores += baseline.compare(scorer.score(told))
        if together > 1:
            overlap |= about_other_edits(group)
        for _ in range(0, len(group), size):
            ledger.rollback(1)
    metrics = {key: round(value, 4) for key, value in summarise(scores).items()}
    others = [one for one in scores if (one.edit_id, one.prompt) not in overlap]
    return {
        "split": "test",
        "edits": len(requests),
        "written_together": size,
        "in_force_together": together,
        "batches_trained": int(editor.trained_batches),
        "parameters": sum(parameter.numel() for parameter in editor.parameters()),
        "language_model": weights_hash(model),
        "cpu_seconds_per_edit": round(cpu / len(requests), 4),
        "metrics": metrics,
        "locality_probes_about_other_edits": len(overlap),
        "locality_without_these": round(summarise(others)["locality/kept@tf"], 4),
    }


def curve(run: Path) -> list[dict[str, float]]:
    """Return the validation scores of a training, by step."""
    rows = []
    for file in sorted(run.glob("logs/*/metrics.csv")):
        for row in csv.DictReader(file.open()):
            values = {k: round(float(v), 4) for k, v in row.items() if k.startswith("val/") and v}
            if values:
                rows.append({"step": int(row["step"]) + 1, **values})
    return rows


def main() -> None:
    """Train, score, and keep the result as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--edits", type=int, help="held-out edits; as the recipe when left out")
    parser.add_argument("--size", type=int, help="edits written together; as the recipe")
    parser.add_argument("--score-only", action="store_true", help="score the last training again")
    parser.add_argument("--run", type=Path, help="folder of the training")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    config = f"configs/train/{options.recipe}.yaml"
    run = options.run or ROOT / "runs" / options.recipe.replace("_", "-")
    record: dict[str, Any] = {"machine": machine(), "config": config}
    record["command"] = f"python benchmarks/quality/trained_atlas.py {options.recipe}"
    if not options.score_only:
        begin = time.monotonic()
        command = [sys.executable, "-m", "lightning_edit", "fit", "--config", config]
        subprocess.run([*command, "--run", str(run)], cwd=ROOT, check=True)
        record["training_wall_seconds"] = round(time.monotonic() - begin, 1)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        record["training_cpu_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    record |= measure(options.recipe, options.edits, run, options.size)
    record["validation"] = curve(run)
    print(json.dumps(record["metrics"], indent=2))
    out = options.out or ROOT / f"benchmarks/results/{options.recipe}.json"
    out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
