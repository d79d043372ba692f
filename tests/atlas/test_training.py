"""The recipe: loss weights, packing, tokenizer, and a few steps that learn."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from lightning_edit.atlas.packing import PROMPT_WEIGHT, PackedRows, encode_sentences
from lightning_edit.atlas.text import Sentence
from lightning_edit.atlas.tokenizer import train_tokenizer
from lightning_edit.atlas.train import AtlasLanguageModel, AtlasTextDataModule, weighted_loss
from lightning_edit.models.loading import load_language_model

TEXT = [Sentence("The capital of France is", "Paris"), Sentence("Oslo is the capital of", "Norway")]


def test_tokens_of_weight_zero_do_not_count() -> None:
    logits = torch.zeros(1, 3, 5)
    logits[0, 0, 2] = 9.0
    ids = torch.tensor([[0, 2, 3]])
    right = weighted_loss(logits, ids, torch.tensor([[1.0, 1.0, 0.0]]))
    both = weighted_loss(logits, ids, torch.tensor([[1.0, 1.0, 1.0]]))
    assert right.item() == pytest.approx(0.0, abs=1e-2)
    assert both.item() == pytest.approx((right.item() + torch.tensor(5.0).log().item()) / 2)


def test_rows_begin_a_text_and_weigh_the_answer() -> None:
    tokenizer = train_tokenizer([sentence.text for sentence in TEXT], vocab_size=300, max_length=64)
    encoded = encode_sentences(tokenizer, TEXT)
    for (ids, weights), sentence in zip(encoded, TEXT, strict=True):
        answer = [i for i, w in zip(ids, weights, strict=True) if w == 1.0]
        assert tokenizer.decode(answer).strip() == f"{sentence.answer}."
        assert set(weights) == {1.0, PROMPT_WEIGHT}
    end_id = tokenizer.eos_token_id
    rows = iter(PackedRows(encoded, end_id, length=48, seed=0))
    first = [next(rows) for _ in range(4)]
    again = iter(PackedRows(encoded, end_id, length=48, seed=0))
    for ids, weights in first:
        assert ids.shape == weights.shape == (48,)
        assert ids[0].item() == end_id
        assert torch.equal(next(again)[0], ids)
    with pytest.raises(ValueError, match="raise the length"):
        PackedRows(encoded, end_id, length=8, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("two_stacks", [False, True])
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec.*:FutureWarning")
def test_a_few_steps_learn_and_save_a_model_that_loads(tmp_path: Path, two_stacks: bool) -> None:
    data = AtlasTextDataModule(
        vocab_size=600, length=64, batch_size=8 if two_stacks else 2, two_stacks=two_stacks
    )
    module = AtlasLanguageModel(
        hidden_size=32,
        layers=2,
        intermediate_size=48,
        heads=2,
        learning_rate=1e-2,
        warmup=2,
        save_every=100,
        save_to=str(tmp_path),
        save_dtype="float16" if two_stacks else "float32",
        decoder_layers=1,
    )
    losses: list[float] = []
    trainer = Trainer(
        accelerator="cpu",
        max_steps=12,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    step = module.training_step

    def recorded(batch: Sequence[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = step(batch, batch_idx)
        losses.append(loss.item())
        return loss

    module.training_step = recorded  # type: ignore[method-assign]
    trainer.fit(module, datamodule=data)
    assert losses[-1] < losses[0] - 0.5
    saved, tokenizer = load_language_model(str(tmp_path))
    assert saved.config.is_encoder_decoder == two_stacks
    texts = tokenizer(["The capital of France is"], return_tensors="pt")["input_ids"]
    if two_stacks:
        assert texts[0, -1].item() == tokenizer.eos_token_id
        inputs = {"input_ids": texts, "decoder_input_ids": torch.tensor([[0, 5, 6]])}
        stored = load_file(tmp_path / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    else:
        assert texts[0, 0].item() == tokenizer.bos_token_id
        inputs = {"input_ids": texts}
    with torch.no_grad():
        expected = module.model.eval()(**inputs).logits
        assert module.model.dtype == torch.float32  # what is trained on is not rounded
        near = {"rtol": 1e-2, "atol": 1e-2} if two_stacks else {}
        torch.testing.assert_close(saved(**inputs).logits, expected, **near)
