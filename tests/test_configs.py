"""Every YAML under configs/ runs: a configuration that is not run does not exist."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_edit.__main__ import main
from tests.datamodules import records
from tests.editors.hypernetwork.test_recipes import RECIPES as ATLAS_RECIPES
from tests.editors.hypernetwork.test_recipes import TWO_STACKS

ROOT = Path(__file__).parent.parent
# Grids take hours: tests/benchmark checks that each of them expands and its editors can be made.
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "benchmark")
RECORDS = {
    "zsre": records.ZSRE_HOP,
    "counterfact": records.ROME,
    "knowedit": records.KNOWEDIT,
    "jsonl": records.OWN,
    "mquake": records.MQUAKE,
    "rippleedits": records.RIPPLE,
}
SMALL = ["--data.limit", "2", "--modes", "[tf]"]
#: A method's settings are read and used with one fact as with more.
ONE = ["--data.limit", "1", "--modes", "[tf]"]
#: Trained for more steps, resumed and used by a test of their own, in smaller batches than theirs.
RECIPES = {*ATLAS_RECIPES, *TWO_STACKS, "mend_atlas", "serac_atlas"}


def command(path: Path, folder: Path) -> list[str]:
    """Return a short run of a configuration, by the folder it is in."""
    atlas = ["--data", "AtlasDataModule"]
    if path.parent.parent.name == "method":
        return ["edit", "--config", str(path), "--lm", path.parent.name, *atlas, *ONE]
    match path.parent.name, path.stem:
        case "method", _:
            return ["edit", "--config", str(path), *atlas, *ONE]
        case "protocol", _:
            return ["edit", "--model", "FTL", *atlas, "--config", str(path), *SMALL]
        case "callbacks", _:
            return ["edit", "--model", "FTL", *atlas, "--config", str(path), *SMALL]
        case "data", name if name in RECORDS:
            file = folder / f"{name}.json{'l' if name == 'jsonl' else ''}"
            data = ["--config", str(path), "--data.path", records.write(file, [RECORDS[name]])]
            return ["edit", "--model", "FTL", *data, *SMALL]
        case "data", _:
            return ["edit", "--model", "FTL", "--config", str(path), *SMALL]
        case "configs", _:
            return ["edit", "--config", str(path), *SMALL]
        case "train", name if (data := name.partition("_")[2]) in RECORDS:
            # One file is every split.
            file = records.write(folder / f"{data}.json", [RECORDS[data]])
            paths = [f"--data.{key}={file}" for key in ("path", "train_path", "val_path")]
            size = "hidden" if name.startswith("ke_") else "rank"
            small = [*paths, f"--model.{size}", "8", "--model.other_facts", "0"]
            return ["fit", "--config", str(path), *small, "--trainer.fast_dev_run", "2"]
        case "atlas", "other_family":
            return ["fit", "--config", str(path), "--trainer.fast_dev_run", "1"]
        case "atlas", _:
            # As many layers as the recipe's, but narrow: 2,400 answers are generated at the end.
            narrow = ["--model.hidden_size", "48", "--model.intermediate_size", "64"]
            return ["fit", "--config", str(path), *narrow, "--trainer.fast_dev_run", "1"]
        case _:
            steps = "1" if path.stem in RECIPES else "2"
            return ["fit", "--config", str(path), "--trainer.fast_dev_run", steps]


# SERAC trains its networks without dropout, as the paper does: in eval mode.
@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.parent.parent.name == "method" and path.parent.name != "atlas":
        pytest.skip(f"needs the weights of {path.parent.name}; tests/test_published.py checks it")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    arguments = command(path, tmp_path)
    assert main(arguments) == 0
    if arguments[0] == "edit":
        (results,) = (tmp_path / "runs").glob("*/results.json")
        assert json.loads(results.read_text())["points"]


def test_settings_for_every_model_hold_nothing_of_one() -> None:
    """Rates, weights and bounds of the embedded model are in a folder of its own."""
    scale = {"lr", "eta", "clamp", "moment_weight", "norm_weight", "norm_constraint"} | {
        "null_threshold",
        "layers",
    }
    for path in sorted((ROOT / "configs" / "method").glob("*.yaml")):
        config = yaml.safe_load(path.read_text())["model"]
        while isinstance(config, dict):
            given = config.get("init_args", {})
            assert not scale & set(given), path
            config = given.get("editor")
