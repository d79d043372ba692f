"""Passes depend on requests, settings and the hooks at the start, never on what ran before them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_edit.callbacks import (
    CollapseCallback,
    CollapseGuard,
    DriftCallback,
    EfficiencyCallback,
    LocalityCallback,
    OverfittingCallback,
    RippleCallback,
)
from lightning_edit.editors import (
    D4S,
    FTM,
    KN,
    MEMIT,
    PRUNE,
    RECT,
    ROME,
    SIR,
    AlphaEdit,
    LoRAEdit,
    UltraEdit,
)
from lightning_edit.editors.base import Editor
from lightning_edit.evaluation.corpus import TextReader
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.exceptions import DataError, LedgerError, PassLayoutError
from lightning_edit.inference import onednn
from lightning_edit.inference.pass_layout import PassLayout, hooked_modules
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types.facts import Fact
from tests.callbacks.planted import toy_texts
from tests.models.tiny import build_tiny, build_tokenizer
from tests.session.pass_log import logged
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer

pytestmark = [
    pytest.mark.bits,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]

TEXTS = toy_texts(6)
FACTS = [
    Fact(f"land{i}", "capital", f"city{i % 40}", f"the capital of land{i} is", (f"city{i % 40}",))
    for i in range(40)
]
LOCATE: dict[str, Any] = {"layers": [1], "statistics": "identity", "steps": 3}
EDITORS: dict[str, Callable[[], Editor]] = {
    "ToyEditor": ToyEditor,
    "ROME": lambda: ROME(**LOCATE),
    "MEMIT": lambda: MEMIT(**LOCATE | {"layers": [0, 1]}),
    "AlphaEdit": lambda: AlphaEdit(**LOCATE),
    "D4S": lambda: D4S(**LOCATE),
    "PRUNE": lambda: PRUNE(MEMIT(**LOCATE)),
    "RECT": lambda: RECT(ROME(**LOCATE)),
    "SIR": lambda: SIR(toy_requests(40)[30:], MEMIT(**LOCATE), threshold=0.01),
    "FTM": lambda: FTM(layers=[1], steps=3),
    "LoRAEdit": lambda: LoRAEdit(steps=3),
    "UltraEdit": UltraEdit,
    "KN": lambda: KN(steps=4),
}


class Cut(pl.Callback):
    """Ends a run as a failure would, after so many batches."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.after -= 1
        if self.after == 0:
            raise RuntimeError("planted failure")


def callbacks() -> list[pl.Callback]:
    return [
        DriftCallback(texts=TEXTS),
        CollapseCallback(texts=TEXTS, generations=2, max_new_tokens=4, every_n_commits=2),
        CollapseGuard(texts=TEXTS, max_perplexity_ratio=1e9, min_earlier=0.0),
        OverfittingCallback(),
        RippleCallback(FACTS, size=4, known_only=False),
        LocalityCallback(other_task=0),
        EfficiencyCallback(),
    ]


def edit(run: Path, editor: Editor, extra: list[pl.Callback], **options: Any) -> dict[str, Any]:
    editor.bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, callbacks=[*callbacks(), *extra]
    )
    return trainer.edit(
        editor, ToyData(4), run=str(run), checkpoint_every=2, eval_at=[1, "end"], **options
    )


def product(run: Path) -> dict[str, bytes]:
    """Return the files of a run that must have the same bytes."""
    names = ["cases.jsonl", "baseline.jsonl", "passes.json", "ledger/journal.jsonl"]
    names += [f"ledger/{path.name}" for path in sorted((run / "ledger").glob("*.safetensors"))]
    files = {name: (run / name).read_bytes() for name in names}
    rows = [json.loads(line) for line in (run / "measures.jsonl").read_text().splitlines()]
    files["measures"] = json.dumps([_timeless(row) for row in rows]).encode()
    return files


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return row if row["by"] != "EfficiencyCallback" else {"by": row["by"], "after": row["after"]}


#: One that reads the model in many ways; the others take as long each.
DEFAULT = ("MEMIT",)


def _tiers(names: Iterable[str]) -> list[Any]:
    marks = {name: () if name in DEFAULT else (pytest.mark.slow,) for name in names}
    return [pytest.param(name, marks=of_name) for name, of_name in marks.items()]


@pytest.mark.slow
@pytest.mark.parametrize("name", _tiers(EDITORS))
def test_a_resumed_run_computes_what_an_uninterrupted_one_does(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operator by operator from the checkpoint on; it fails on every processor alike."""
    protocol = "sequential"
    with logged(monkeypatch) as whole:
        edit(tmp_path / "whole", EDITORS[name](), [], protocol=protocol)
    with pytest.raises(RuntimeError, match="planted"):
        edit(tmp_path / "cut", EDITORS[name](), [Cut(3)], protocol=protocol)
    with logged(monkeypatch) as resumed:
        edit(tmp_path / "cut", EDITORS[name](), [], protocol=protocol, ckpt_path="last")
    assert "commit of fact-2" in resumed.parts
    assert "commit of fact-1" not in resumed.parts
    for part, lines in resumed.parts.items():
        for number, (found, expected) in enumerate(zip(lines, whole.parts[part], strict=False)):
            assert found == expected, f"{part}, operator {number}"
        assert len(lines) == len(whole.parts[part]), part
    assert product(tmp_path / "cut") == product(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["single", "batch"])
@pytest.mark.parametrize("name", ["ToyEditor", "MEMIT"])
def test_other_protocols_resume_in_the_same_passes(
    tmp_path: Path, name: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with logged(monkeypatch) as whole:
        edit(tmp_path / "whole", EDITORS[name](), [], protocol=protocol)
    cut = Cut(3 if protocol == "single" else 1)
    with pytest.raises(RuntimeError, match="planted"):
        edit(tmp_path / "cut", EDITORS[name](), [cut], protocol=protocol)
    with logged(monkeypatch) as resumed:
        edit(tmp_path / "cut", EDITORS[name](), [], protocol=protocol, ckpt_path="last")
    assert resumed.parts or protocol == "batch"
    for part, lines in resumed.parts.items():
        assert lines == whole.parts[part], part
    assert product(tmp_path / "cut") == product(tmp_path / "whole")


def test_hidden_states_are_read_without_leaving_hooks() -> None:
    for family in ("gpt2", "llama", "gpt_neox", "opt", "gemma2"):
        model, tokenizer = build_tiny(family), build_tokenizer()
        texts = ["the capital of France is Paris", "Rome"]
        found = TextReader(model, tokenizer).hidden(texts, [0, model.config.num_hidden_layers - 1])
        assert hooked_modules(model) == []
        assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
        for row, text in zip(found, texts, strict=True):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                states = model(ids, output_hidden_states=True).hidden_states
            torch.testing.assert_close(row[0], states[1][0, -1].float())
            torch.testing.assert_close(row[-1], states[-1][0, -1].float())


def test_recorders_of_transformers_are_no_hooks_of_anybody() -> None:
    model = toy_model()
    model(torch.tensor([[1, 2]]), output_hidden_states=True)
    if not any(one._forward_hooks for one in model.modules()):
        pytest.skip("this version of transformers records hidden states without hooks")
    assert hooked_modules(model) == []
    assert PassLayout.choose(model).kind == "prefix_tree"


def test_a_hook_that_appears_later_is_an_error_with_a_remedy() -> None:
    model, tokenizer = toy_model(), toy_tokenizer()
    scorer = Scorer(model, tokenizer)
    before = evaluate(scorer, toy_requests(3))
    handle = model.transformer.h[1].register_forward_hook(lambda *call: None)
    with pytest.raises(PassLayoutError, match=r"transformer\.h\.1 got a forward hook .* register"):
        evaluate(scorer, toy_requests(3))
    # Who begins with it has a row for each text, and may lose it later.
    hooked = Scorer(model, tokenizer)
    assert hooked.layout.kind == "padded"
    with_hook = evaluate(hooked, toy_requests(3))
    handle.remove()
    assert evaluate(hooked, toy_requests(3)) == with_hook
    assert evaluate(scorer, toy_requests(3)) == before


def test_another_attention_in_mid_run_is_an_error() -> None:
    model = toy_model()
    scorer = Scorer(model, toy_tokenizer())
    model.set_attn_implementation("eager")
    with pytest.raises(PassLayoutError, match="another attention implementation"):
        evaluate(scorer, toy_requests(3))


class Hooks(pl.Callback):
    """Hooks into the edited model, as the run begins or later."""

    def __init__(self, model: nn.Module, at: str) -> None:
        self.model = model
        self.at = at
        self.handle: Any = None

    def _hook(self) -> None:
        self.handle = self.model.register_forward_hook(lambda *call: None)

    def on_fit_start(self, *args: Any) -> None:
        if self.at == "start":
            self._hook()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        if self.at == "later" and self.handle is None:
            self._hook()


@pytest.mark.parametrize("at", ["start", "later"])
def test_a_callback_may_hook_in_as_the_run_begins(tmp_path: Path, at: str) -> None:
    model = toy_model()
    editor = ToyEditor().bind(model, toy_tokenizer())
    trainer = EditTrainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, callbacks=[Hooks(model, at)]
    )
    if at == "start":
        trainer.edit(editor, ToyData(4), run=str(tmp_path))
        assert json.loads((tmp_path / "passes.json").read_text())["kind"] == "padded"
    else:
        with pytest.raises(PassLayoutError, match="GPT2LMHeadModel got a forward hook"):
            trainer.edit(editor, ToyData(4), run=str(tmp_path))


@pytest.mark.slow
def test_what_follows_an_answer_is_guessed_once_on_the_pristine_model(tmp_path: Path) -> None:
    model, tokenizer = toy_model(), toy_tokenizer()
    probes = [probe for request in toy_requests(40) for probe in probes_of(request)]
    scorer = Scorer(model, tokenizer)
    assert scorer.layout.after_answer == ()
    scorer.score(probes)
    assert scorer.layout.after_answer == ()  # nothing is guessed by the way
    assert scorer.guess_after_answer(probes) == scorer.guess_after_answer(probes[::-1])
    assert scorer.guess_after_answer(probes[:4]) == ()
    assert Scorer(model, tokenizer, modes=("tf",)).guess_after_answer(probes) == ()
    edit(tmp_path, ToyEditor(), [])
    state = json.loads((tmp_path / "passes.json").read_text())
    after = state["after_answer"]
    expected = {"kind": "prefix_tree", "after_answer": after, "products": "torch"}
    assert state == expected | {"long_prefixes": True}


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN"
)
@pytest.mark.parametrize("record", ["whole", "of an older version", "none"])
def test_a_resumed_run_multiplies_as_it_began(
    record: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if record == "whole":
        monkeypatch.setattr(onednn, "LEAST_NUMBERS", 1)
    with pytest.raises(RuntimeError, match="planted"):
        edit(tmp_path, ToyEditor(), [Cut(3)])
    (tmp_path / "checkpoints" / "last.ckpt").unlink()  # killed before its first checkpoint
    passes = tmp_path / "passes.json"
    state = json.loads(passes.read_text())
    if record == "none":
        passes.unlink()
    elif record == "of an older version":
        passes.write_text(json.dumps({name: state[name] for name in ("kind", "after_answer")}))
    products: list[int] = []
    own = onednn.multiply
    monkeypatch.setattr(onednn, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(onednn, "multiply", lambda *args: products.append(1) or own(*args))
    edit(tmp_path, ToyEditor(), [], ckpt_path="last")
    assert bool(products) == (record == "whole")
    assert state["products"] == ("onednn" if record == "whole" else "torch")


#: Damaged records that are JSON all the same.
BROKEN = ["[]", '{"kind": "tree"}', '{"kind": "padded"}']


@pytest.mark.parametrize(
    "damage", ["{", *(pytest.param(one, marks=pytest.mark.slow) for one in BROKEN)]
)
def test_a_damaged_record_of_the_passes_is_named(tmp_path: Path, damage: str) -> None:
    with pytest.raises(RuntimeError, match="planted"):
        edit(tmp_path, ToyEditor(), [Cut(3)])
    (tmp_path / "passes.json").write_text(damage)
    with pytest.raises(LedgerError, match=r"passes\.json is missing, or was changed"):
        edit(tmp_path, ToyEditor(), [], ckpt_path="last")
    (tmp_path / "checkpoints" / "last.ckpt").unlink()  # killed before its first checkpoint
    with pytest.raises(DataError, match=r"passes\.json does not say how"):
        edit(tmp_path, ToyEditor(), [], ckpt_path="last")
