"""Published and found settings under configs/method/<model>: they fit the editors and the models.

The models themselves are too large for a test; what is checked is what a mistyped file gets wrong.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml

from lightning_edit.cli.lightning import RunParser, add_language_model, check_names
from lightning_edit.editors.base import Editor
from lightning_edit.editors.wrappers.base import WrappedEditor
from tests.models.tiny import build_tiny

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs" / "method").glob("*/*.yaml"))


@dataclass(frozen=True)
class Model:
    """Blocks and family of a published model, by its config.json on the hub."""

    hub: str
    blocks: int
    family: str

    def tiny(self) -> Any:
        """Build a narrow model of the family with as many blocks, and so with the same names."""
        key = "n_layer" if self.family in ("gpt2", "gptj") else "num_hidden_layers"
        return _tiny(self.family, key, self.blocks)


@cache
def _tiny(family: str, key: str, blocks: int) -> Any:
    return build_tiny(family, **{key: blocks})


MODELS = {
    "atlas": Model("atlas", 5, "llama"),
    "gpt2-xl": Model("openai-community/gpt2-xl", 48, "gpt2"),
    "gpt-j-6b": Model("EleutherAI/gpt-j-6b", 28, "gptj"),
    "llama-2-7b": Model("meta-llama/Llama-2-7b-hf", 32, "llama"),
    "llama-3-8b": Model("meta-llama/Meta-Llama-3-8B-Instruct", 32, "llama"),
    "qwen2.5-7b": Model("Qwen/Qwen2.5-7B-Instruct", 28, "qwen2"),
    "mistral-7b": Model("mistralai/Mistral-7B-v0.1", 32, "mistral"),
    "smollm2-135m": Model("runs/real-model/smollm2-135m-instruct", 30, "llama"),
}
#: Models whose settings `tune` has found: its files say on what, and have no published source.
FOUND = ("smollm2-135m",)


@cache
def parser() -> RunParser:
    """Return a parser that takes --config and --model as `edit` does."""
    made = RunParser()
    made.add_argument("--config", action="config")
    made.add_lightning_class_args(pl.LightningModule, "model", subclass_mode=True)
    add_language_model(made)
    check_names([])
    return made


def instantiate(path: Path) -> Editor:
    editor = parser().instantiate_classes(parser().parse_args(["--config", str(path)])).model
    assert isinstance(editor, Editor)
    return editor


def arguments(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config["init_args"].items():
        if name == "editor":
            yield from arguments(value)
        else:
            yield name, value


each = pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")


def test_there_are_settings_for_every_model() -> None:
    assert {path.parent.name for path in FILES} == set(MODELS)


@each
def test_the_editor_takes_every_value(path: Path) -> None:
    editor = instantiate(path)
    config = yaml.safe_load(path.read_text())["model"]
    assert type(editor).__name__ == config["class_path"].rpartition(".")[2]
    host = editor.editor if isinstance(editor, WrappedEditor) else editor
    given = dict(arguments(config))
    if "layers" in given:
        assert host.layers == given["layers"]


@each
def test_layers_and_modules_are_the_models_own(path: Path) -> None:
    model = MODELS[path.parent.name]
    config = yaml.safe_load(path.read_text())["model"]
    given = dict(arguments(config))
    layers = given.get("layers") or []  # none: all of them
    assert layers == sorted(set(layers))
    assert all(0 <= layer < model.blocks for layer in [*layers, given.get("middle_layer", 0)])
    names = {name for name, _ in model.tiny().named_modules()}
    assert set(given.get("modules") or []) <= names
    assert set(given.get("targets") or []) <= {name.rpartition(".")[2] for name in names}


def is_found(path: Path) -> bool:
    return path.parent.name in FOUND


each_published = pytest.mark.parametrize(
    "path",
    [path for path in FILES if not is_found(path)],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)


@pytest.mark.parametrize("path", [path for path in FILES if is_found(path)], ids=lambda p: p.stem)
def test_found_settings_say_on_what_they_were_found(path: Path) -> None:
    what, scores, warning = path.read_text().partition("model:")[0].splitlines()
    assert what.startswith(f"# {path.stem} on smollm2-135m-instruct: ")
    assert "trials of 10 facts" in what
    assert "harmonic mean" in scores
    other = path.stem in {"MEMIT", "PMET", "FTM", "LoRAEdit"}
    assert warning == (
        "# Chosen on these facts: report results on others."
        if other
        else "# The editor's own settings: the best trial is not a standard error better."
    )


@each_published
def test_every_value_names_its_source(path: Path) -> None:
    lines = path.read_text().splitlines()
    begin = lines.index("  init_args:")
    values = [line for line in lines[begin + 1 :] if not line.strip().startswith("- ")]
    structure = ("editor:", "class_path:", "init_args:")
    bare = [line for line in values if not line.strip().startswith(structure)]
    assert bare
    assert [line for line in bare if "  # " not in line] == []


@each_published
def test_the_head_says_what_to_type(path: Path) -> None:
    head = path.read_text().partition("model:")[0]
    assert f"--config {path.relative_to(ROOT)} --lm {MODELS[path.parent.name].hub}" in head
