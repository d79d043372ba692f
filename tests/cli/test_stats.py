import json
from pathlib import Path

import pytest
import torch

from lightning_edit.cli.stats import main
from lightning_edit.exceptions import StatisticsNotFoundError
from lightning_edit.models.view import resolve
from lightning_edit.statistics.cache import files_for, moments_for, spectra_in
from lightning_edit.statistics.moments import Moments
from tests.models.tiny import CORPUS, TINY, build_tokenizer
from tests.statistics.conftest import _own_cache as _own_cache


def test_command_line_collects_and_stores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = TINY["gpt2"](), build_tokenizer()
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in CORPUS))
    out = tmp_path / "out.safetensors"
    arguments = ["--lm", str(tmp_path / "lm"), "--text", str(text), "--layers", "[1,2]"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "tokens of 2 layers" in capsys.readouterr().out
    loaded = Moments.load(out)
    assert sorted(loaded.matrices) == [f"transformer.h.{n}.mlp.c_proj" for n in (1, 2)]
    with pytest.raises(StatisticsNotFoundError):  # a file of one's own is not what all edits use
        moments_for(model, tokenizer, [2], "auto")
    assert main(arguments) == 0
    found = moments_for(model, tokenizer, [2], "auto")[2]
    torch.testing.assert_close(found, loaded.matrices["transformer.h.2.mlp.c_proj"])


def lm_and_text(folder: Path) -> list[str]:
    TINY["gpt2"]().save_pretrained(folder / "lm")
    build_tokenizer().save_pretrained(folder / "lm")
    (folder / "text.txt").write_text("\n".join(f"{CORPUS[n % 5]} {n}" for n in range(40)))
    return ["--lm", str(folder / "lm"), "--text", str(folder / "text.txt"), "--layers", "[1]"]


NAME = "transformer.h.1.mlp.c_proj"


def test_bos_reaches_the_tokenizer(tmp_path: Path) -> None:
    arguments = [*lm_and_text(tmp_path), "--out", str(tmp_path / "out.safetensors")]
    assert main(arguments) == 0
    plain = Moments.load(tmp_path / "out.safetensors")
    assert main([*arguments, "--lm_bos", "true"]) == 0
    begun = Moments.load(tmp_path / "out.safetensors")
    assert (plain.specials, begun.specials) == ((), (1,))
    assert begun.tokens == plain.tokens + 40


def test_quick_is_less_text_and_shrinkage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*lm_and_text(tmp_path), "--out", str(tmp_path / "out.safetensors")]
    assert main([*arguments, "--quick", "--max_tokens", "60", "--shrinkage", "identity"]) == 0
    assert "shrunk towards the identity by" in capsys.readouterr().out
    quick = Moments.load(tmp_path / "out.safetensors")
    assert quick.tokens == 60
    assert quick.target == "identity"
    assert 0 < quick.intensities[NAME] < 1
    # Full statistics are preferred as soon as they are there.
    assert main([*arguments[:-2], "--quick", "--max_tokens", "60"]) == 0
    assert main(arguments) == 0
    assert main(arguments[:-2]) == 0
    whole = Moments.load(tmp_path / "out.safetensors")
    found = moments_for(TINY["gpt2"](), build_tokenizer(), [1], "auto")[1]
    torch.testing.assert_close(found, whole.matrices[NAME], rtol=0, atol=0)
    assert whole.intensities == {}


def test_projectors_are_stored_beside_the_moments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, out = lm_and_text(tmp_path), tmp_path / "out.safetensors"
    assert main([*arguments, "--projector", "relative:0.3", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    stored = Moments.load(out, with_spectra=True)
    spectrum = stored.spectra[NAME]
    free = spectrum.null_space(0.3, "relative").shape[1]
    assert f"{NAME}: {free} of 48 directions are free (relative:0.3)" in told
    rebuilt = spectrum.vectors @ spectrum.values.diag() @ spectrum.vectors.mT
    torch.testing.assert_close(rebuilt, stored.matrices[NAME].double(), rtol=1e-9, atol=1e-9)
    assert list(Moments.load(out).matrices) == [NAME]


def test_projectors_of_what_is_in_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = lm_and_text(tmp_path)
    assert main(arguments) == 0
    without_text = [*arguments[:2], *arguments[4:]]
    assert main([*without_text, "--projector", "absolute:1e-9"]) == 0
    assert f"{NAME}: 0 of 48 directions are free (absolute:1e-09)" in capsys.readouterr().out
    files = files_for(TINY["gpt2"](), build_tokenizer(), [1], "auto")
    assert list(spectra_in(files, resolve(TINY["gpt2"]()))) == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--text is required"),
        (["--text", "a.txt", "--projector", "0.02"], "expected relative:BOUND, absolute:BOUND or"),
        (["--text", "a.txt", "--max_tokens", "0"], "expected a whole number of 1 or more"),
        (["--text", "a.txt", "--lm_bos", "maybe"], "expected true or false"),
    ],
)
def test_wrong_options(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err
