"""PEFT adapters: the edited model's logits, what their files say, and what does not fit in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from lightning_edit.cli.export import main
from lightning_edit.edits.delta import Delta, Dense, LowRank
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import ExportError
from lightning_edit.export.adapter import check_expressible
from lightning_edit.export.write import export
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.view import resolve
from lightning_edit.types import EditRequest
from tests.export.runs import Run, commit, load_adapter, request, several, start, update
from tests.models.tiny import build_tiny, build_tokenizer

# peft 0.21 asks transformers 5.23 for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt", "t5"])
def test_an_adapter_gives_the_edited_models_logits(family: str, tmp_path: Path) -> None:
    run = start(tmp_path, family)
    pristine = run.logits(run.fresh())
    if family == "t5":
        commit(run, "a", update(run, 0, 3, 1))
    else:
        several(run)
    assert (run.logits() - pristine).abs().max() > 0.1
    done = export(run.path, "peft")
    assert done.path == run.path / "export" / "peft"
    adapter = load_adapter(run, done.path)
    torch.testing.assert_close(run.logits(adapter), run.logits(), rtol=0, atol=1e-5)
    with adapter.disable_adapter():
        torch.testing.assert_close(run.logits(adapter), pristine, rtol=0, atol=0)
    merged = adapter.merge_and_unload()
    torch.testing.assert_close(run.logits(merged), run.logits(), rtol=0, atol=1e-5)


def test_the_adapters_files_say_what_they_are(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    path = export(run.path, "peft").path
    names = sorted(file.name for file in path.iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "edits.jsonl"]
    config = json.loads((path / "adapter_config.json").read_text())
    modules = {f"transformer.h.{block}.mlp.c_proj": rank for block, rank in enumerate([1, 4, 3])}
    assert config["rank_pattern"] == config["alpha_pattern"] == modules
    assert set(config["target_modules"]) == set(modules)
    assert config["fan_in_fan_out"] is True
    assert config["lora_dropout"] == 0.0
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == str(run.base)
    with safe_open(str(path / "adapter_model.safetensors"), framework="pt") as file:
        assert len(file.keys()) == 6
    edits = [json.loads(line) for line in (path / "edits.jsonl").read_text().splitlines()]
    assert [EditRequest.from_dict(edit) for edit in edits] == [request(name) for name in "abcde"]


def test_only_the_edited_layers_are_touched_in_a_model_of_many(tmp_path: Path) -> None:
    base = tmp_path / "base"
    build_tiny("gpt2", n_layer=12).save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    model, _ = load_language_model(str(base))
    run = Run(tmp_path / "run", base, model, Ledger(model, directory=tmp_path / "run" / "ledger"))
    run.ledger.open(language_model={"name": str(base), "dtype": "float32"})
    commit(run, "a", update(run, 1, 1, 1))
    adapter = load_adapter(run, export(run.path, "peft").path)
    assert adapter.base_model.targeted_module_names == ["transformer.h.1.mlp.c_proj"]
    torch.testing.assert_close(run.logits(adapter), run.logits(), rtol=0, atol=1e-5)


def test_a_cut_adapter_says_what_it_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = several(start(tmp_path, "llama"))
    assert main([str(run.path), "--format", "peft", "--max_rank", "2"]) == 0
    out = capsys.readouterr().out
    kept = float(out.split("%")[0].rpartition(" ")[2])
    assert 30 < kept < 99
    config = json.loads((run.path / "export/peft/adapter_config.json").read_text())
    assert set(config["rank_pattern"].values()) == {1, 2}
    assert f"at least {kept:.2f}%" in (run.path / "export/peft/README.md").read_text()


def test_more_rank_than_a_matrix_has_is_folded_without_loss(tmp_path: Path) -> None:
    run = start(tmp_path, "gpt2")
    for number in range(5):
        commit(run, f"e{number}", update(run, 1, 9, number))
    done = export(run.path, "peft")
    assert done.kept == pytest.approx(1.0, abs=1e-9)
    config = json.loads((done.path / "adapter_config.json").read_text())
    assert config["r"] == 32
    torch.testing.assert_close(
        run.logits(load_adapter(run, done.path)), run.logits(), rtol=0, atol=1e-4
    )


class Mixed(nn.Module):
    """A Conv1D and a Linear layer in one model, which no architecture has."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.a, self.b = Conv1D(4, 3), nn.Linear(3, 4)


def test_conv1d_and_linear_do_not_go_into_one_adapter() -> None:
    matrix = LowRank(torch.ones(4, 1), torch.ones(1, 3))
    delta = Delta(("x",), {"a.weight": matrix, "b.weight": matrix})
    with pytest.raises(ExportError, match=r"Conv1D layer \(a\.weight\) and a Linear layer"):
        check_expressible(delta, Mixed())
    assert check_expressible(Delta(("x",), {"a.weight": matrix}), Mixed()) is True
    assert check_expressible(Delta(("x",), {"b.weight": matrix}), Mixed()) is False


def test_a_bias_does_not_go_into_an_adapter(tmp_path: Path) -> None:
    run = start(tmp_path, "gpt2")
    bias = resolve(run.model).parameter(0).replace("weight", "bias")
    commit(run, "a", update(run, 0, 1, 1) | {bias: Dense(torch.ones(32))})
    with pytest.raises(ExportError, match=r"bias, which is a vector.*--format merged or delta"):
        export(run.path, "peft")
    assert export(run.path, "merged").edits == 1
