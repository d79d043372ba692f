"""Edits asked again after a cast, a merge and later training."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_edit.callbacks import DurabilityCallback
from lightning_edit.callbacks.context import EvalContext
from lightning_edit.editors import FTM, MEMIT, MemPrompt
from lightning_edit.evaluation.conversions import converted
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ArchitectureError, ConfigError
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tiny, build_tokenizer

FACTS = [
    EditRequest("paris", "The capital of France is", "Rome", "France"),
    EditRequest("мск", "Столица страны Россия это", "Осло", "Россия"),
    EditRequest("lyon", "Marseille lies in", "Italy", "Marseille"),
]
CORPUS = [f"{fact.prompt} {fact.target}" for fact in FACTS]


def tokenizer() -> Any:
    return build_tokenizer(vocab_size=300, corpus=CORPUS)


def edited_tiny(family: str = "llama") -> Any:
    model = build_tiny(family, vocab_size=300).requires_grad_(False)
    return FTM(lr=1e-2, steps=25).edit_model(model, tokenizer(), FACTS)


def context(edited: Any) -> EvalContext:
    return EvalContext(3, edited.model, edited.tokenizer, FACTS, ledger=edited.ledger)


def right(model: Any) -> dict[str, bool]:
    scores = Scorer(model, tokenizer(), modes=("tf",)).score(
        [probe for fact in FACTS for probe in probes_of(fact)]
    )
    return {one.edit_id: one.em == 1.0 for one in scores}


def test_what_survives_a_cast_and_a_merge() -> None:
    edited = edited_tiny()
    before = weights_hash(edited.model)
    assert any(right(edited.model).values())
    callback = DurabilityCallback(["float16", "bfloat16", "merge"])
    callback.before = {}
    found = callback.measure(context(edited))
    assert weights_hash(edited.model) == before
    held = {name for name, ok in right(edited.model).items() if ok}
    assert found.values["durability/held"] == len(held) / 3
    assert "durability/survived" not in found.values
    own = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    for name, dtype in own.items():
        there = right(build_copy(edited.model).to(dtype))
        share = sum(there[one] for one in held) / len(held)
        assert found.values[f"durability.{name}/survived"] == share
    # Half of the way from the unedited model is not the edit.
    merged = converted(edited.model, "merge", {n: t.pristine for n, t in touched(edited).items()})
    for name, one in touched(edited).items():
        mean = (one.pristine + edited.model.get_parameter(name)) / 2
        torch.testing.assert_close(merged.get_parameter(name), mean)
    lost = held - {name for name, ok in right(merged).items() if ok}
    assert found.values["durability.merge/survived"] == 1 - len(lost) / len(held)
    assert {row["edit_id"] for row in found.rows} == {fact.id for fact in FACTS}


def build_copy(model: Any) -> Any:
    copied = build_tiny("llama", vocab_size=300)
    copied.load_state_dict(model.state_dict())
    return copied


def touched(edited: Any) -> Any:
    return edited.ledger.touched


class Later(pl.LightningModule):
    """Somebody's training of something else on the edited model."""

    def __init__(self, model: Any, lr: float) -> None:
        super().__init__()
        self.model, self.tokenizer, self.lr = model.requires_grad_(True), tokenizer(), lr

    def training_step(self, batch: Tensor, number: int) -> Tensor:
        loss: Tensor = self.model(input_ids=batch, labels=batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
@pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`")
@pytest.mark.parametrize(("lr", "survive"), [(0.0, True), (5.0, False)])
def test_what_survives_later_training(lr: float, survive: bool) -> None:
    edited = edited_tiny()
    held = sum(right(edited.model).values())
    module = Later(edited.model, lr)
    ids = module.tokenizer("Lyon lies in France too", return_tensors="pt").input_ids
    data = torch.utils.data.DataLoader(list(ids.repeat(6, 1)), batch_size=2)
    callback = DurabilityCallback(["bfloat16"], requests=FACTS)
    pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    ).fit(module, data)
    assert sum(callback.first.values()) == held
    assert callback.before is not None
    assert callback.before["durability/survived"] == 1
    now = sum(right(module.model).values())
    assert callback.values["durability/held"] == now / len(FACTS)
    if survive:
        assert callback.values["durability/survived"] == 1
    else:
        assert callback.values["durability/survived"] < 1
    state = callback.state_dict()
    other = DurabilityCallback(requests=FACTS)
    other.load_state_dict(state)
    assert other.first == callback.first


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="`limit` must be at least 1, or None, got 0"):
        DurabilityCallback(limit=0)
    with pytest.raises(ConfigError, match="`modes` must be tf, gen or both"):
        DurabilityCallback(modes=())
    model = build_tiny("gpt2", vocab_size=300)
    with pytest.raises(ConfigError, match="which only a run of edits has"):
        converted(model, "merge")
    without = EvalContext(0, model, tokenizer())
    with pytest.raises(ConfigError, match="give it `run`, the folder of a run, or `requests`"):
        DurabilityCallback().measure(without)
    acting = MemPrompt().edit_model(model, tokenizer(), FACTS[:1])
    asked = EvalContext(
        1, model, tokenizer(), FACTS, ledger=acting.ledger, responder=acting.responder()
    )
    with pytest.raises(ConfigError, match="acts at run time and changes none"):
        DurabilityCallback().measure(asked)
    # Before the first edit there is nothing to ask.
    edited = MEMIT(statistics="identity", steps=2, context_templates=["{}"]).edit_model(
        build_tiny("gpt2", vocab_size=300), tokenizer(), FACTS[:1]
    )
    edited.undo()
    assert DurabilityCallback().measure(context(edited)).values == {}


def test_eight_bits() -> None:
    pytest.importorskip("torchao", reason="the extra int8 is not installed")
    edited = edited_tiny()
    found = DurabilityCallback(["int8"]).measure(context(edited)).values
    assert 0 <= found["durability.int8/survived"] <= 1
    copied = converted(edited.model, "int8")
    weight = copied.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert type(weight) is not torch.nn.Parameter
    original = edited.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    off = (weight.dequantize() - original).norm() / original.norm()  # type: ignore[operator]
    assert 1e-4 < float(off) < 2e-2
    with pytest.raises(ArchitectureError, match="Conv1D, which would silently stay"):
        converted(build_tiny("gpt2"), "int8")
