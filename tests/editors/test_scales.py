"""Settings by rule do not depend on the units in which a model happens to compute.

A model whose residual stream is eight times as large, and whose MLPs compute with inputs of another
size, is the same function. Numbers that were published for one model would change nothing in it, or
everything.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightning_edit.editors as editors
from lightning_edit.analysis.tuning.space import search_space
from lightning_edit.cli.doctor_auto import auto_settings
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash
from lightning_edit.statistics.cache import files_for
from lightning_edit.statistics.moments import Moments

STREAM, INPUTS, VALUES = 8.0, 0.25, 2.0
METHODS: Mapping[str, dict[str, Any]] = {
    "ROME": {},
    "RROME": {},
    "MEMIT": {},
    "EMMET": {},
    "AlphaEdit": {},
    "ENCORE": {},
    "NSE": {},
    "D4S": {},
    "FT": {},
    "FTM": {},
    "FTL": {},
    "LocFTBF": {},
    "LoRAEdit": {},
    "UltraEdit": {},
    "GRACE": {},
    "WISE": {"templates": ["{}", "Well. {}"]},
    "MEMOIR": {"templates": ["{}", "Well. {}"]},
    "MELO": {},
    "CaliNet": {},
    "TPatcher": {"memory": ["The weather is fine.", "A cat sat down."]},
}


@torch.no_grad()
def rescale(model: nn.Module) -> None:
    """Give the hidden states of the embedded model another scale, and leave its answers."""
    core: Any = model.get_submodule("model")
    core.embed_tokens.weight.mul_(STREAM)
    for block in core.layers:
        block.mlp.up_proj.weight.mul_(INPUTS)
        block.mlp.down_proj.weight.mul_(STREAM / INPUTS)
        block.self_attn.v_proj.weight.mul_(VALUES)
        block.self_attn.o_proj.weight.mul_(STREAM / VALUES)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    model, tokenizer = load_language_model("atlas")
    layers = list(range(5))
    files = files_for(model, tokenizer, layers, "auto")
    parts = [Moments.load(files[layer]) for layer in layers]
    matrices = {name: INPUTS**2 * c for part in parts for name, c in part.matrices.items()}
    rescale(model)
    moments = replace(parts[0], matrices=matrices, model=weights_hash(model))
    path = tmp_path_factory.mktemp("scaled") / "moments.safetensors"
    moments.save(path)
    return model, tokenizer, path


def answered(
    method: str, model: Any, tokenizer: Any, arguments: Mapping[str, Any]
) -> tuple[list[str], editors.Editor]:
    """Return the prompts of three facts that are answered after an edit of each, and the editor."""
    data = AtlasDataModule(split="val")
    editor = getattr(editors, method)(**arguments)
    editor.on_stream(data)
    handle = EditedModel(editor.bind(model, tokenizer))
    right = []
    for fact in data.edit_requests()[:3]:
        handle.edit([fact])
        if handle.generate(fact.prompt, max_new_tokens=8).strip().startswith(fact.target.strip()):
            right.append(fact.prompt)
        handle.undo()
    return right, editor


def require_within_search(editor: editors.Editor) -> None:
    """Check that `tune` would try numbers on both sides of what a rule has chosen."""
    named = [name for name in auto_settings(type(editor)) if name in editor.chosen]
    kinds = dict.fromkeys(named, type(editor))
    for one in search_space(dict.fromkeys(named, "auto"), only=named, kinds=kinds):
        chosen = editor.chosen[one.name]
        for value in chosen if isinstance(chosen, list) else [chosen]:
            assert one.low < value <= one.high, (type(editor), one)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_defaults_write_whatever_the_scale(method: str, scaled: tuple[Any, Any, Path]) -> None:
    arguments = METHODS[method]
    plain, editor = answered(method, *load_language_model("atlas"), arguments)
    assert plain
    require_within_search(editor)
    model, tokenizer, statistics = scaled
    if getattr(editors, method).needs_statistics:
        arguments = {**arguments, "statistics": str(statistics)}
    assert answered(method, model, tokenizer, arguments)[0] == plain
