"""The grids that ship: each expands, its editors can be made, its figures stand in a table."""

from pathlib import Path

import pytest

from lightning_edit.benchmark.build import build
from lightning_edit.benchmark.grid import Cell, shard
from lightning_edit.benchmark.outcomes import CellOutcome
from lightning_edit.benchmark.parse import read_grid
from lightning_edit.benchmark.tables import tables_of
from lightning_edit.exceptions import ConfigError

ROOT = Path(__file__).parents[2]
GRIDS = sorted((ROOT / "configs" / "benchmark").glob("*.yaml"))
SMALL = """
models: {tiny: {lm: atlas}}
data: {facts: {class_path: AtlasDataModule}}
protocols: {two: {protocol: batch, edits: 2}}
methods: {FTL: {class_path: FTL, init_args: {lr: 0.1}, per_model: {tiny: {lr: 0.2}}}}
"""


def untouched(cell: Cell) -> CellOutcome:
    return CellOutcome(cell, "open" if cell.absent is None else "absent", cell.absent or "")


@pytest.mark.slow
@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_a_grid_expands_and_its_editors_can_be_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    grid = read_grid(path)
    specs = {cell.digest: cell for cell in grid.cells if cell.absent is None}
    assert len({cell.name for cell in grid.cells}) == len(grid.cells)
    made = set()
    for cell in specs.values():
        key = str((cell.spec["editor"], cell.spec["data"]))
        if key not in made:
            build(cell.spec)
            made.add(key)
    tables = tables_of(grid, [untouched(cell) for cell in grid.cells])
    lines = {line.label for table in tables for line in table.lines}
    for published in grid.published:
        assert published.source
        assert published.conditions
        for method in published.values:
            assert f"{method}, {published.label}" in lines, (published.label, method)


def write(folder: Path, text: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def test_options_by_model_and_numbers_of_edits_reach_the_cell(tmp_path: Path) -> None:
    (cell,) = read_grid(write(tmp_path, SMALL)).cells
    assert cell.spec["editor"]["init_args"] == {"lr": 0.2}
    assert cell.spec["data"]["init_args"] == {"limit": 2}
    assert cell.spec["protocol"] == {"protocol": "batch"}


def test_published_settings_of_a_model_come_from_their_file(tmp_path: Path) -> None:
    given = tmp_path / "given.yaml"
    given.write_text("model: {class_path: lightning_edit.editors.FTL, init_args: {lr: 0.7}}")
    text = SMALL.replace("{tiny: {lr: 0.2}}", "{tiny: given.yaml}")
    (cell,) = read_grid(write(tmp_path, text)).cells
    assert cell.spec["editor"]["init_args"] == {"lr": 0.7}
    given.write_text("model: {class_path: lightning_edit.editors.ROME}")
    with pytest.raises(ConfigError, match=r"is of lightning_edit.editors.ROME, but .* FTL"):
        read_grid(write(tmp_path, text))


def test_another_option_is_another_cell(tmp_path: Path) -> None:
    (one,) = read_grid(write(tmp_path, SMALL)).cells
    (other,) = read_grid(write(tmp_path, SMALL.replace("0.2", "0.3"))).cells
    assert one.name != other.name


def test_shards_are_the_whole(tmp_path: Path) -> None:
    cells = read_grid(ROOT / "configs" / "benchmark" / "methods.yaml").cells
    parts = [shard(cells, number, 4) for number in (1, 2, 3, 4)]
    assert sorted(cell.name for part in parts for cell in part) == sorted(c.name for c in cells)
    with pytest.raises(ConfigError, match="no shard 5/4"):
        shard(cells, 5, 4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("models:", "model:"), "'model' is not known"),
        (("methods: {FTL", "methodes: {FTL"), "'methodes' is not known"),
        (("lm: atlas", "llm: atlas"), "'llm' is not known"),
        (("class_path: FTL, ", ""), "either `config`"),
        (("protocol: batch", "protocoll: batch"), "'protocoll' is not known"),
        (("models:", "seeds: [0, 0]\nmodels:"), "asked for twice"),
        (("models:", "cells: [{data: [other]}]\nmodels:"), "data has no 'other'"),
        (("models:", "columns: [{title: a, data: [b], columns: []}]\nmodels:"), "data has no 'b'"),
    ],
)
def test_a_wrong_grid_says_what_is_wrong(
    tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        read_grid(write(tmp_path, SMALL.replace(*change)))


def test_a_wrong_argument_is_named(tmp_path: Path) -> None:
    (cell,) = read_grid(write(tmp_path, SMALL.replace("init_args: {lr", "init_args: {rate"))).cells
    with pytest.raises(ConfigError, match="'rate' is not accepted"):
        build(cell.spec)
