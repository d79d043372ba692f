"""A language model, data and an editor small enough to edit hundreds of times in a second."""

import time
import zlib

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch, EditRequest, Probe

WORDS = ["<|endoftext|>", "the", "capital", "of", "land", "is", "city", "what", "?", "."]
WORDS += [f"land{i}" for i in range(250)] + [f"city{i}" for i in range(40)]


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<|endoftext|>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end, pad_token=end)


def toy_model(dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    """Two blocks of random weights."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=len(WORDS), n_positions=32,
        bos_token_id=0, eos_token_id=0, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).to(dtype).eval()
    model.config.name_or_path = model.name_or_path = "toy"
    return model.requires_grad_(False)


def toy_requests(count: int) -> list[EditRequest]:
    """As many made-up facts, each with a rephrasing and a neighbour."""
    return [
        EditRequest(
            id=f"fact-{i}",
            prompt=f"the capital of land{i} is",
            target=f"city{i % 40}",
            subject=f"land{i}",
            old_target=f"city{(i + 1) % 40}",
            rephrases=(f"what is the capital of land{i} ?",),
            probes=(
                Probe.of("neighborhood", f"the capital of land{(i + 1) % 250} is", f"city{i % 7}"),
            ),
        )
        for i in range(count)
    ]


class ToyData(EditDataModule):
    """The made-up facts as a data module."""

    def __init__(self, count: int = 12, limit: int | None = None) -> None:
        super().__init__(limit=limit)
        self.count = count

    def load_split(self, split: str) -> list[EditRequest]:
        return toy_requests(self.count)


class ToyEditor(Editor):
    """Adds a small rank-one update that depends on the request, the seed and its own history."""

    needs_subject = True

    def __init__(
        self, fail_at: str | None = None, wait_at: str | None = None, gain: float = 0.01
    ) -> None:
        super().__init__()
        self.gain = gain  # the history grows by this factor an edit
        self.fail_at = fail_at
        self.wait_at = wait_at  # a signal comes while this request is edited, if not before
        self.register_buffer("history", torch.zeros(16, dtype=torch.float64))

    @property
    def parameter(self) -> str:
        return self.view.blocks[0].mlp_down + ".weight"

    def edit(self, batch: EditBatch) -> Delta:
        if self.fail_at in batch.ids:
            raise RuntimeError("planted failure")
        if self.wait_at in batch.ids:
            time.sleep(60)
        d_out, d_in = weight(self.language_model, self.parameter).shape
        left, right = [], []
        for request in batch.requests:
            draw = torch.Generator().manual_seed(zlib.crc32(request.id.encode()) + batch.seed)
            left.append(torch.randn(d_out, generator=draw) * 0.2 + self.history.float() * self.gain)
            right.append(torch.randn(d_in, generator=draw) * 0.2)
        update = LowRank(torch.stack(left, 1), torch.stack(right))
        return Delta(batch.ids, {self.parameter: update})

    def remember(self, delta: Delta) -> None:
        self.history += delta.weights[self.parameter].left.double().sum(1)

    def forget(self, delta: Delta) -> None:
        self.history -= delta.weights[self.parameter].left.double().sum(1)
