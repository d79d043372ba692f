"""Which edits survive a cast, 8-bit weights, a merge, and later fine-tuning: five editors.

20 edits of the atlas are written at once; then the same questions are asked on converted copies,
and after 100 steps of fine-tuning on other facts of the atlas.

Run:  python benchmarks/quality/durability_atlas.py
"""

import argparse
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_edit.atlas.facts import unasked_facts
from lightning_edit.atlas.graph import load_atlas
from lightning_edit.benchmark.machine import machine
from lightning_edit.callbacks import DurabilityCallback, EvalContext
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import FTM, MEMIT, ROME, AlphaEdit, Editor, UltraEdit
from lightning_edit.functional.padding import pad
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash

ROOT = Path(__file__).resolve().parents[2]
#: Published settings, whose learning rates alone are raised, for so small a model.
EDITORS: dict[str, Any] = {
    "ROME": ROME,
    "MEMIT": lambda: MEMIT(moment_weight=None, clamp=0.75),
    "AlphaEdit": lambda: AlphaEdit(10.0, 0.1, "relative", clamp=0.75),
    "FTM": lambda: FTM(lr=5e-3),
    "UltraEdit": lambda: UltraEdit(eta=0.01),
}
RATES = (1e-5, 1e-4)


class FineTuning(pl.LightningModule):
    """Later training of the edited model on other facts.

    Args:
        model: The edited model.
        tokenizer: Its tokenizer.
        lr: Learning rate of AdamW.
    """

    def __init__(self, model: Any, tokenizer: Any, lr: float) -> None:
        super().__init__()
        self.model, self.tokenizer, self.lr = model.requires_grad_(True), tokenizer, lr

    def training_step(self, batch: list[str], number: int) -> Tensor:
        """Return the loss of running text."""
        ids, mask = pad([self.tokenizer(text)["input_ids"] for text in batch])
        labels = torch.where(mask.bool(), ids, -100)
        loss: Tensor = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), self.lr)


def main() -> None:
    """Edit, convert, train, and keep the shares as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/durability_atlas.json"
    )
    parser.add_argument(
        "--editors", nargs="+", choices=list(EDITORS), default=list(EDITORS),
        help="measure these again, and keep what the file has of the others",
    )  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    requests = AtlasDataModule(limit=options.edits, split="test").edit_requests()
    # Facts that no test request edits or probes.
    texts = [f"{fact.prompt} {fact.target}." for fact in unasked_facts(load_atlas())]
    casts: list[Any] = ["float16", "bfloat16", "merge"]
    if importlib.util.find_spec("torchao") is not None:
        casts.insert(2, "int8")
    rows: list[dict[str, Any]] = []
    if len(options.editors) < len(EDITORS):
        kept = json.loads(options.out.read_text(encoding="utf-8"))["rows"]
        rows = [row for row in kept if row["editor"] not in options.editors]
    for name in options.editors:
        make = EDITORS[name]
        model, tokenizer = load_language_model("atlas")
        language_model = weights_hash(model)
        editor: Editor = make()
        edited = editor.edit_model(model, tokenizer, requests)
        context = EvalContext(len(requests), model, tokenizer, requests, ledger=edited.ledger)
        found = DurabilityCallback(casts).measure(context)
        row = {"editor": name, "questions": len(found.rows), **found.values}
        state = {key: value.clone() for key, value in model.state_dict().items()}
        for lr in RATES:
            model.load_state_dict(state)
            pl.seed_everything(0, verbose=False)
            callback = DurabilityCallback((), requests=requests)
            loader = torch.utils.data.DataLoader(texts, batch_size=16, shuffle=True)
            pl.Trainer(
                max_steps=options.steps,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[callback],
            ).fit(FineTuning(model, tokenizer, lr), loader)
            callback.first = {(r["edit_id"], r["prompt"]): r["right"] for r in found.rows}
            later = callback.measure(EvalContext(options.steps, model, tokenizer))
            row[f"fit {lr:g}/survived"] = later.values["durability/survived"]
        rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(json.dumps(rows[-1]), flush=True)
    record = {
        "machine": machine(),
        "language_model": language_model,
        "edits": len(requests),
        "steps": options.steps,
        "rows": sorted(rows, key=lambda row: list(EDITORS).index(row["editor"])),
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
