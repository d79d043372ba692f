"""Run folders of a few made edits, to export from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from lightning_edit.edits.delta import Delta, Dense, LowRank, WeightUpdate
from lightning_edit.edits.ledger import Ledger
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weight
from lightning_edit.types import EditRequest
from tests.models.tiny import batch_of, build_tiny, build_tokenizer


@dataclass
class Run:
    """A run folder, the folder of its unedited model, and the model as edited."""

    path: Path
    base: Path
    model: nn.Module
    ledger: Ledger

    def logits(self, model: nn.Module | None = None) -> Tensor:
        model = self.model if model is None else model
        with torch.no_grad():
            return model(**batch_of(self.model)).logits.float()

    def fresh(self) -> nn.Module:
        return load_language_model(str(self.base), "float32")[0]


def request(name: str) -> EditRequest:
    return EditRequest(name, f"The | capital\nof <b>{name}</b> is", "*Paris*", old_target="Rome")


def start(tmp_path: Path, family: str, dtype: str = "float32", protocol: str = "sequential") -> Run:
    base = tmp_path / "base"
    build_tiny(family).save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    model, _ = load_language_model(str(base), dtype)
    ledger = Ledger(model, directory=tmp_path / "run" / "ledger")
    facts = {"name": str(base), "dtype": dtype}
    ledger.open(editor="Toy", language_model=facts, protocol=protocol)
    return Run(tmp_path / "run", base, model, ledger)


def update(
    run: Run, block: int, rank: int, seed: int, dense: bool = False
) -> dict[str, WeightUpdate]:
    torch.manual_seed(seed)
    name = resolve(run.model).parameter(block)
    rows, columns = weight(run.model, name).shape
    low = LowRank(0.3 * torch.randn(rows, rank), torch.randn(rank, columns))
    return {name: Dense(low.dense().float()) if dense else low}


def commit(run: Run, name: str | Sequence[str], weights: dict[str, WeightUpdate]) -> None:
    names = (name,) if isinstance(name, str) else tuple(name)
    run.ledger.commit(Delta(names, weights), [request(one) for one in names])


def several(run: Run) -> Run:
    """Ranks 1 and 3, several layers, one layer twice, one dense update."""
    commit(run, "a", update(run, 0, 1, 1))
    commit(run, "b", update(run, 1, 3, 2) | update(run, 2, 1, 3))
    commit(run, ("c", "d"), update(run, 1, 1, 4))
    commit(run, "e", update(run, 2, 2, 5, dense=True))
    return run


def load_adapter(run: Run, path: Path) -> PeftModel:
    return PeftModel.from_pretrained(run.fresh(), str(path)).eval()
