"""A model's folder runs no code, asks nothing, and says how to trust it."""

import ast
import builtins
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, Gemma3Config

from lightning_edit.cli.main import main
from lightning_edit.exceptions import ModelLoadError
from lightning_edit.models.loading import build_empty, load_language_model, load_tokenizer
from tests.conftest import ROOT
from tests.models.tiny import build_tiny, build_tokenizer

CONFIG = """
from pathlib import Path
from transformers import GPT2Config
Path({proof!r}).touch()
class OwnConfig(GPT2Config):
    model_type = "own"
"""
MODEL = """
from pathlib import Path
from transformers import GPT2LMHeadModel
from .configuration_own import OwnConfig
Path({proof!r}).touch()
class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""
TOKENIZER = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({proof!r}).touch()
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
Make = Callable[..., tuple[Path, Path]]


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a folder with code that leaves a file, while whoever sits there answers yes."""
    asked: list[str] = []

    def answer(prompt: str = "") -> str:
        asked.append(prompt)
        return "y"

    monkeypatch.setattr(builtins, "input", answer)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def make(name: str, *, model: bool = True, tokenizer: bool = False) -> tuple[Path, Path]:
        folder, proof = tmp_path / name, tmp_path / f"{name}-was-here"
        build_tiny("gpt2").save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        for file, code in (
            ("configuration_own", CONFIG), ("modeling_own", MODEL), ("tokenization_own", TOKENIZER)
        ):  # fmt: skip
            (folder / f"{file}.py").write_text(code.format(proof=str(proof)))
        if model:
            config = json.loads((folder / "config.json").read_text())
            config |= {
                "model_type": "own",
                "auto_map": {
                    "AutoConfig": "configuration_own.OwnConfig",
                    "AutoModelForCausalLM": "modeling_own.OwnModel",
                },
            }
            (folder / "config.json").write_text(json.dumps(config))
        if tokenizer:
            path = folder / "tokenizer_config.json"
            known = json.loads(path.read_text())
            known |= {
                "tokenizer_class": "OwnTokenizer",
                "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
            }
            path.write_text(json.dumps(known))
        return folder, proof

    yield make
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    assert asked == []


def test_code_of_a_folder_is_not_run(hostile: Make) -> None:
    folder, proof = hostile("own")
    for load in (load_language_model, build_empty):
        with pytest.raises(
            ModelLoadError, match=r"--lm_trust_remote_code true .*trust_remote_code=True"
        ):
            load(str(folder))
    assert not proof.exists()


def test_code_of_a_tokenizer_is_not_run(hostile: Make) -> None:
    folder, proof = hostile("own", tokenizer=True)
    with pytest.raises(ModelLoadError, match="code of its own for its tokenizer"):
        load_tokenizer(str(folder))
    # Of an architecture that transformers knows, its own class is used instead.
    folder, other = hostile("known", model=False, tokenizer=True)
    assert type(load_tokenizer(str(folder))).__name__ != "OwnTokenizer"
    assert not proof.exists()
    assert not other.exists()


def test_trusted_code_is_run(hostile: Make) -> None:
    folder, proof = hostile("trusted")
    model, _ = load_language_model(str(folder), trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert proof.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "{}"],
        ["trace", "--lm", "{}"],
        ["edit", "--model", "FTL", "--data", "AtlasDataModule", "--lm", "{}", "--run", "{}-run"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_verb_runs_it(
    hostile: Make, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    folder, proof = hostile("own")
    given = [one.format(folder) for one in arguments]
    assert main(given) == 2
    assert "--lm_trust_remote_code true" in capsys.readouterr().err
    assert not proof.exists()
    assert main(["doctor", str(folder), "--lm_trust_remote_code"]) == 0
    assert proof.exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_a_kernel_named_by_the_config_is_not_fetched(tmp_path: Path, key: str) -> None:
    build_tiny("gpt2").save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: "a/b"}))
    if AutoConfig.from_pretrained(tmp_path)._attn_implementation != "a/b":
        pytest.skip(f"this release of transformers does not read {key}")
    with pytest.raises(ModelLoadError, match="attention kernel 'a/b', which was not run"):
        load_language_model(str(tmp_path))


def test_a_kernel_named_for_a_part_of_the_model_is_not_fetched(tmp_path: Path) -> None:
    config = Gemma3Config(text_config={"num_hidden_layers": 1}).to_dict()
    config["_attn_implementation"] = {"text_config": "a/b"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="attention kernel 'a/b', which was not run"):
        load_language_model(str(tmp_path))


def test_an_adapter_is_no_language_model(tmp_path: Path) -> None:
    build_tiny("gpt2").save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="merge it into its base model"):
        load_language_model(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelLoadError, match="merge it into its base model"):
        load_language_model(str(tmp_path))


def test_a_relative_folder_is_recorded_as_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_tiny("gpt2").save_pretrained(tmp_path / "m")
    build_tokenizer().save_pretrained(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    assert load_language_model("m")[0].name_or_path == str(tmp_path / "m")


def test_every_loading_call_says_whose_code_it_trusts() -> None:
    found, silent = 0, []
    for path in sorted((ROOT / "lightning_edit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func) == "PeftModel.from_pretrained":
                continue  # an adapter brings no code: safetensors and JSON
            if node.func.attr in ("from_pretrained", "from_config"):
                found += 1
                if "trust_remote_code" not in {keyword.arg for keyword in node.keywords}:
                    silent.append(f"{path}:{node.lineno}")
    assert found >= 7
    assert silent == []
