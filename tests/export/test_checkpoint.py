"""Merged checkpoints and delta files hold the edited weights."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lightning_edit.cli.export import main
from lightning_edit.edits.delta import Delta, Dense, LowRank
from lightning_edit.exceptions import ExportError
from lightning_edit.export.write import export
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weight, weights_hash
from tests.export.runs import commit, several, start, update
from tests.models.tiny import build_tiny, build_tokenizer

pytestmark = pytest.mark.bits


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
