"""Runs of edits as a program, for one process or several: ``python -m tests.session.rank_cases``.

Arguments: folder, number of processes, names of cases, and options as JSON. Every process writes
what it ended with to ``<case>/rank-<n>.json``.
"""

import atexit
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lightning_edit import (
    FT,
    FTM,
    GRACE,
    ICE,
    KN,
    MALMEN,
    MEMIT,
    MEND,
    RECT,
    ROME,
    WISE,
    AlphaEdit,
    CollapseCallback,
    CollapseGuard,
    DriftCallback,
    EfficiencyCallback,
    LoRAEdit,
    OverfittingCallback,
    RippleCallback,
    UltraEdit,
)
from lightning_edit.editors.gradient import ultraedit
from lightning_edit.editors.gradient.base import GradientEditor
from lightning_edit.editors.hypernetwork import edit_tokens
from lightning_edit.editors.locate import target_search
from lightning_edit.editors.wrappers.base import WrappedEditor
from lightning_edit.edits.delta import Delta
from lightning_edit.inference import teacher_forcing
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.session.transaction import Transaction
from lightning_edit.types import EditBatch
from lightning_edit.types.facts import Fact
from tests.editors.routing.routing import split, untuned
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer

TEXTS = ["the capital of land1 is city2 .", "what is the capital ?", "city3 is the city of land5"]
#: Small passes, so that there are some for every process.
SEARCH: dict[str, Any] = {
    "layers": [0, 1], "statistics": "identity", "rows_per_pass": 4, "steps": 4, "clamp": 4.0,
    "context_templates": ["{}", "the city . {}"],
}  # fmt: skip
JOINT = SEARCH | {"moment_weight": 1e-3}
ONE_LAYER = SEARCH | {"layers": [1]}


class PlantedEditor(WrappedEditor):
    """A toy editor whose process fails in some way at one request, on one rank."""

    def __init__(self, what: str, where: str, rank: int) -> None:
        super().__init__(ToyEditor())
        self.what, self.where, self.at = what, where, rank

    def edit(self, batch: EditBatch) -> Delta:
        found = self.editor.edit(batch)
        if self.where not in batch.ids or int(os.environ.get("LOCAL_RANK", "0")) != self.at:
            return found
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "hang":
            time.sleep(600)
        if self.what == "raise":
            raise RuntimeError("planted failure")
        if self.what == "plain":
            return found
        (name, update), *_ = found.weights.items()
        update.left.view(torch.int32)[0, 0] ^= 1  # the last bit
        return Delta(batch.ids, {name: update})


def callbacks() -> list[Any]:
    """Every kind of measurement, and a guard that takes edits back."""
    return [
        EfficiencyCallback(),
        DriftCallback(TEXTS),
        CollapseCallback(TEXTS, generations=2, max_new_tokens=3),
        OverfittingCallback(),
        CollapseGuard(max_perplexity_ratio=1.02, every_n_commits=2, texts=TEXTS),
    ]


def ripple() -> list[Any]:
    """The callback whose facts lie around the edits, in a graph of its own."""
    facts = [
        Fact(
            f"land{i}", "capital", f"city{i % 40}", f"the capital of land{i} is", (f"city{i % 40}",)
        )
        for i in range(70)
    ]
    return [RippleCallback(facts, layer=0, size=5, known_only=False)]


def trained(editor_class: Any, **options: Any) -> Any:
    """An editor from a checkpoint, whose networks are far from what they begin with."""
    learnt = editor_class(layers=[0, 1], rank=4, step_size=0.5, **options)
    learnt.bind(toy_model(), toy_tokenizer())
    learnt.trained_batches += 1
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in learnt.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    with TemporaryDirectory() as name:
        path = Path(name) / "learnt.safetensors"
        learnt.save_weights(path)
        return editor_class(checkpoint=str(path)).bind(toy_model(), toy_tokenizer())


def serac() -> Any:
    """A routing editor that sends half of the questions to its second model."""
    editor = untuned()
    editor.bind(toy_model(), toy_tokenizer())
    prompts = [text for one in toy_requests(8) for text in (one.prompt, *one.rephrases)]
    split(editor, toy_requests(5), prompts)
    return editor


#: By name: the editor, the number of facts, arguments of ``edit``, and what else measures.
Measuring = Callable[[], list[Any]]
CASES: dict[str, tuple[Callable[[], Any], int, dict[str, Any], Measuring | None]] = {
    "toy": (ToyEditor, 40, {"batch_size": 5, "eval_at": [5, "end"]}, callbacks),
    "memit": (lambda: MEMIT(**JOINT), 9, {"protocol": "batch"}, None),
    "rome-single": (lambda: ROME(**ONE_LAYER), 5, {"protocol": "single", "batch_size": 5}, None),
    "rome": (lambda: ROME(**ONE_LAYER), 4, {"batch_size": 2}, None),
    "alphaedit": (
        lambda: AlphaEdit(**SEARCH), 8, {"batch_size": 4, "eval_at": [4, "end"]}, None,
    ),
    "rect": (lambda: RECT(editor=MEMIT(**JOINT)), 7, {"protocol": "batch"}, None),
    "ft": (lambda: FT(layers=[1], steps=3), 4, {"batch_size": 2}, None),
    "ftm": (
        lambda: FTM(layers=[1], steps=3), 4, {"protocol": "single", "batch_size": 4}, None,
    ),
    "lora": (lambda: LoRAEdit(steps=2), 4, {"protocol": "single", "batch_size": 4}, None),
    "mend": (lambda: trained(MEND), 4, {"protocol": "single", "batch_size": 3}, None),
    "mend-batch": (lambda: trained(MEND), 5, {"protocol": "batch"}, None),
    "malmen": (lambda: trained(MALMEN, mini_batch=2), 7, {"protocol": "batch"}, None),
    "serac": (serac, 5, {"batch_size": 2, "eval_at": [2, "end"]}, None),
    "ripple": (ToyEditor, 6, {"batch_size": 2, "eval_at": [2, "end"]}, ripple),
    "kn": (KN, 2, {}, None),
    "ultraedit": (lambda: UltraEdit(layers=[1], rows_per_pass=1), 6, {"batch_size": 3}, None),
    "grace": (lambda: GRACE(layer=1, steps=5), 4, {}, callbacks),
    "grace-single": (
        lambda: GRACE(layer=1, steps=5), 4, {"protocol": "single", "batch_size": 4}, None,
    ),
    "wise": (lambda: WISE(layer=1, steps=3), 3, {}, None),
    "ice": (ICE, 3, {}, None),
    "transaction": (
        ToyEditor, 12, {"batch_size": 2, "transaction": Transaction(max_perplexity_ratio=1.05,
        texts=TEXTS)}, None,
    ),
    "only-wrong": (lambda: MEMIT(**JOINT), 8, {"batch_size": 4, "only_wrong": True}, None),
}  # fmt: skip
#: One plan of a failure each, on rank 1 or 0, and the same run without one.
PLANTED = {"kill": 1, "kill-first": 0, "hang": 1, "raise": 1, "differ": 1, "plain": 1}
for _what, _rank in PLANTED.items():
    _plan = partial(PlantedEditor, _what.partition("-")[0], "fact-7", _rank)
    CASES[_what] = (_plan, 12, {}, None)


@contextmanager
def counted(module: Any, name: str, counts: dict[str, int]) -> Iterator[None]:
    """Count the calls of a function in this process: the passes that it runs."""
    call = getattr(module, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        counts[name] = counts.get(name, 0) + 1
        return call(*arguments, **options)

    setattr(module, name, counting)
    try:
        yield
    finally:
        setattr(module, name, call)


def run(root: Path, processes: int, name: str, nodes: int = 1, **options: Any) -> None:
    """Run one case in this process, as one of several."""
    make, count, arguments, measure = CASES[name]
    passes: dict[str, int] = {}
    torch.manual_seed(0)
    model = toy_model()
    editor = make().bind(model, toy_tokenizer())
    trainer = EditTrainer(
        logger=False, accelerator="cpu", devices=processes, enable_progress_bar=False,
        num_nodes=nodes, strategy="ddp" if processes * nodes > 1 else "auto",
        callbacks=None if measure is None else measure(),
    )  # fmt: skip
    folder = root / name
    arguments = {"checkpoint_every": 2} | arguments | options
    with (
        counted(target_search, "_search_pass", passes),
        counted(teacher_forcing, "run_pass", passes),
        counted(GradientEditor, "_train", passes),
        counted(LoRAEdit, "_train", passes),
        counted(ultraedit, "answer_factors", passes),
        counted(edit_tokens, "answer_factors", passes),
    ):
        results = trainer.edit(editor, ToyData(count), run=str(folder), **arguments)
    found = {
        "hash": weights_hash(model),
        "norms": results.edited.ledger.update_norms(),
        "points": results["points"],
        "text": results.edited.generate("the capital of land1 is", 3),
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
    }
    (folder / f"passes-{trainer.global_rank}.json").write_text(json.dumps(passes))
    (folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(found))


def run_all(root: str, processes: int, names: str, options: dict[str, Any]) -> None:
    """Run some cases after each other."""
    for one in names.split(","):
        run(Path(root), processes, one, **options)


def name_threads(folder: Path) -> None:
    """Write the names of the threads that are left as the program ends."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    (folder / f"threads-{os.environ.get('RANK', '0')}-{os.getpid()}.json").write_text(
        json.dumps(names)
    )


if __name__ == "__main__":
    atexit.register(name_threads, Path(sys.argv[1]))  # registered first, called last
    warnings.simplefilter("ignore")
    given = sys.argv[1:5]
    run_all(given[0], int(given[1]), given[2], json.loads(given[3]))
