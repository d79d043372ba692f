"""Parity with the authors' own code: FT-L and FT-M."""

import pytest
import torch

from lightning_edit.editors.ft import FTL, FTM
from tests.editors.golden import batch, golden, model, relative, tokenizer

# Distances found: 0 in float32 (FT-M 4e-5), 2e-8 against float64, as updates are kept in float32.
# Adam's first steps are ±lr whatever the gradient's size, so rounding could move single entries.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}


@pytest.mark.parametrize(
    "path",
    [
        "FT/tiny-gpt2/single-float32",
        "FT/tiny-gpt2/ten-float32-strong",
        "FT/tiny-gpt2/ten-float64-strong",
        "EasyEdit-FT-M/tiny-gpt2/single",
        "EasyEdit-FT-M/tiny-gpt2/ten",
    ],
)
def test_deltas_agree(path: str) -> None:
    example = golden(path)
    dtype = torch.float64 if "float64" in path else torch.float32
    hparams = example.meta["hparams"]
    editor = (FTM if "FT-M" in path else FTL)(
        layers=hparams["layers"],
        steps=hparams["num_steps"],
        lr=float(hparams["lr"]),
        norm_constraint=float(hparams["norm_constraint"]),
    )
    editor.bind(model(example.model_name, dtype), tokenizer(example.model_name))
    delta = editor.edit(batch(example))
    found = {}
    for name, update in delta.weights.items():
        theirs = example.tensors[f"delta.{name}"]
        found[name] = relative(update.dense(), theirs.mT if theirs.ndim == 2 else theirs)
    assert max(found.values()) < TOLERANCE[dtype]
    assert {f"delta.{name}" for name in found} == set(example.tensors)
