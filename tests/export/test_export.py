"""What is exported loads elsewhere and answers as the edited model does."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lightning_edit.delta import Delta, Dense, LowRank, WeightUpdate
from lightning_edit.exceptions import ExportError, LedgerError
from lightning_edit.export.adapter import check_expressible
from lightning_edit.export.card import cell
from lightning_edit.export.cli import main
from lightning_edit.export.write import export
from lightning_edit.ledger import Ledger
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weight, weights_hash
from lightning_edit.types import EditRequest
from lightning_edit.undo import main as undo
from tests.disks import file_size_limit
from tests.models.tiny import batch_of, build_tiny, build_tokenizer

# peft 0.21 asks transformers 5.23 for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_checkpoint_has_the_edited_weights_bit_for_bit(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = several(start(tmp_path, "gpt2", dtype))
    assert main([str(run.path), "--format", "merged", "--out", str(tmp_path / "out")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert weights_hash(again) == weights_hash(run.model)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("The capital of France is")
    assert tokens == AutoTokenizer.from_pretrained(run.base)("The capital of France is")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "5 edits" in out
    code = out.strip().rpartition("): ")[2]
    space = {"AutoModelForCausalLM": AutoModelForCausalLM}
    exec(code, space)
    assert weights_hash(space["model"]) == weights_hash(run.model)  # type: ignore[arg-type]


def test_a_merged_checkpoint_of_tied_and_one_dimensional_weights(tmp_path: Path) -> None:
    run = start(tmp_path, "gpt2")
    torch.manual_seed(0)
    shape = weight(run.model, "transformer.wte.weight").shape
    head = {"transformer.wte.weight": LowRank(torch.randn(shape[0], 1), torch.randn(1, shape[1]))}
    commit(run, "a", head | {"transformer.ln_f.bias": Dense(torch.randn(shape[1]))})
    export(run.path, "merged")
    again = AutoModelForCausalLM.from_pretrained(run.path / "export/merged")
    torch.testing.assert_close(run.logits(again), run.logits(), rtol=0, atol=0)
    with pytest.raises(ExportError, match="--format merged or delta"):
        export(run.path, "peft")


def test_a_merged_encoder_decoder_model(tmp_path: Path) -> None:
    run = start(tmp_path, "t5")
    commit(run, "a", update(run, 0, 2, 1))
    done = export(run.path, "merged")
    assert "AutoModelForSeq2SeqLM" in done.code
    again = AutoModelForSeq2SeqLM.from_pretrained(done.path)
    torch.testing.assert_close(run.logits(again), run.logits(), rtol=0, atol=0)


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    build_tiny("gpt2", seed=1).save_pretrained(tmp_path / "other")
    build_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ExportError, match="give the unedited model with --model"):
        export(run.path, "merged", model=str(tmp_path / "other"))
    build_tiny("gpt2", n_inner=40).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ExportError, match=r"weight has \(32, 40\)"):
        export(run.path, "peft", model=str(tmp_path / "narrow"))
    run.base.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="does not exist"):
        export(run.path, "merged")
    export(run.path, "merged", model=str(tmp_path / "moved"))
    assert sorted(path.name for path in (run.path / "export").iterdir()) == ["merged"]


def test_a_delta_file_adds_all_edits(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    done = export(run.path, "delta")
    delta = Delta.load(done.path / "delta.safetensors")
    assert delta.request_ids == tuple("abcde")
    assert delta.rank() == {resolve(run.model).parameter(i): r for i, r in enumerate([1, 4, 32])}
    fresh = run.fresh()
    with delta.applied(fresh):
        torch.testing.assert_close(run.logits(fresh), run.logits(), rtol=0, atol=1e-5)


def test_edits_that_act_at_run_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = start(tmp_path, "gpt2")
    for name in "ab":
        state = {"keys": torch.ones(2), f"own-{name}": torch.zeros(1)}
        run.ledger.commit(Delta((name,), state=state, prompts={name: "Imagine"}), [request(name)])
    for name in ("peft", "merged"):
        assert main([str(run.path), "--format", name, "--ids", "a"]) == 2
        assert "use --format delta" in capsys.readouterr().err
    done = export(run.path, "delta", ids=["a"])
    assert Delta.load(done.path / "delta.safetensors").prompts == {"a": "Imagine"}
    with pytest.raises(ExportError, match=r"several edits keep run-time state 'keys'.*ledger"):
        export(run.path, "delta", overwrite=True)


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


def test_an_undo_is_not_exported(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    assert undo([str(run.path), "--ids", "b", "e"]) == 0
    # The journal has the undo already; only the model in hand follows.
    run.ledger.journal = None
    run.ledger.undo(["b"])
    run.ledger.undo(["e"])
    adapter = load_adapter(run, export(run.path, "peft").path)
    torch.testing.assert_close(run.logits(adapter), run.logits(), rtol=0, atol=1e-5)
    assert undo([str(run.path), "--all"]) == 0
    with pytest.raises(ExportError, match="every edit was undone; export one with --ids ID"):
        export(run.path, "peft", overwrite=True)


def test_one_edit_of_a_single_protocol_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(tmp_path, "llama", protocol="single")
    for number in range(3):
        commit(run, f"e{number}", update(run, number, 1, number))
        run.ledger.undo([f"e{number}"])
    assert main([str(run.path)]) == 2
    message = "protocol single restores the model after each edit; export one with --ids ID"
    assert message in capsys.readouterr().err
    assert main([str(run.path), "--ids", "e1"]) == 0
    assert "1 edit," in capsys.readouterr().out
    commit(run, "again", update(run, 1, 1, 1))
    adapter = load_adapter(run, run.path / "export/peft")
    torch.testing.assert_close(run.logits(adapter), run.logits(), rtol=0, atol=1e-5)
    assert main([str(run.path), "--ids", "e9", "--overwrite"]) == 2
    assert "no edit called 'e9'; it made: e0, e1, e2" in capsys.readouterr().err


def test_edits_of_one_batch_are_exported_together(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    with pytest.raises(ExportError, match="c was solved together with d; export the whole batch"):
        export(run.path, "delta", ids=["c"])
    assert export(run.path, "delta", ids=["d", "c"]).edits == 2


def test_a_run_without_edits_and_no_run(tmp_path: Path) -> None:
    run = start(tmp_path, "gpt2")
    with pytest.raises(ExportError, match="has no edit yet"):
        export(run.path, "peft")
    with pytest.raises(ExportError, match="give the folder that `lightning-edit edit` wrote"):
        export(tmp_path / "nowhere", "peft")


def test_a_tampered_delta_is_not_exported(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    path = run.path / "ledger" / "000001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(LedgerError, match="SHA-256 differs"):
        export(run.path, "merged")
    assert not (run.path / "export").exists()


def test_what_stands_in_the_way_is_kept(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    out = export(run.path, "delta").path
    before = (out / "delta.safetensors").read_bytes()
    with pytest.raises(ExportError, match="add --overwrite"):
        export(run.path, "delta")
    with pytest.raises(ExportError, match="was not made by"):
        export(run.path, "delta", out=run.base, overwrite=True)
    with pytest.raises(ExportError, match="is a file"):
        export(run.path, "delta", out=run.base / "config.json", overwrite=True)
    with file_size_limit(2000), pytest.raises(ExportError, match="no space is left"):
        export(run.path, "delta", overwrite=True)
    assert (out / "delta.safetensors").read_bytes() == before
    undo([str(run.path), "--ids", "b"])
    export(run.path, "delta", overwrite=True)
    assert (out / "delta.safetensors").read_bytes() != before
    assert [path.name for path in out.parent.iterdir()] == ["delta"]


@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_a_full_disk_leaves_nothing_behind(kind: Literal["peft", "merged"], tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    with (
        file_size_limit(1500),
        pytest.raises(ExportError, match=r"no space is left\. Nothing was left there; free space"),
    ):
        export(run.path, kind, out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


def test_the_card_shows_the_requests_and_no_markup_of_theirs(tmp_path: Path) -> None:
    run = several(start(tmp_path, "gpt2"))
    text = (export(run.path, "peft", ids=["a"]).path / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| a "))
    assert row == r"| a | The \| capital of &lt;b&gt;a&lt;/b&gt; is | Rome | \*Paris\* |"
    assert weights_hash(run.fresh()) in text
    assert 'PeftModel.from_pretrained(base_model, "peft")' in text
    assert "picked out of a longer run" in text
    assert cell("a`b`\n# c") == r"a\`b\` \# c"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from lightning_edit.export.cli import build_parser; build_parser();"
        "print([m for m in ('torch', 'peft', 'transformers', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--format", "delta", "--max_rank", "2"], ["--max_rank", "0"]):
        with pytest.raises(SystemExit):
            main(["run", *options])
    assert "expected a whole number from 1" in capsys.readouterr().err


def test_a_bias_does_not_go_into_an_adapter(tmp_path: Path) -> None:
    run = start(tmp_path, "gpt2")
    bias = resolve(run.model).parameter(0).replace("weight", "bias")
    commit(run, "a", update(run, 0, 1, 1) | {bias: Dense(torch.ones(32))})
    with pytest.raises(ExportError, match=r"bias, which is a vector.*--format merged or delta"):
        export(run.path, "peft")
    assert export(run.path, "merged").edits == 1
