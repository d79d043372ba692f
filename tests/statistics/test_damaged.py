"""Damaged files of statistics end in one sentence."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_edit.exceptions import DataError, LightningEditError
from lightning_edit.statistics.cache import find, model_folder
from lightning_edit.statistics.moments import Moments
from lightning_edit.statistics.partial import PartialSums

FORMAT = {"format": "lightning-edit-statistics/1", "model": "m", "corpus": "c", "tokens": "9"}


def good(path: Path) -> Path:
    Moments({"a": torch.eye(3)}, 9, "m", "c").save(path)
    return path


def test_whole_files_are_read(tmp_path: Path) -> None:
    assert Moments.load(good(tmp_path / "s.safetensors")).tokens == 9


@pytest.mark.parametrize("size", [0, 5, 100, -10])
def test_truncated(tmp_path: Path, size: int) -> None:
    path = good(tmp_path / "s.safetensors")
    path.write_bytes(path.read_bytes()[:size])
    for load in (Moments.load, lambda one: PartialSums(one).load({})):
        with pytest.raises(DataError, match="delete it") as caught:
            load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"tokens": "many"}, {"tokens": None}, {"intensities": "{"}, {"specials": "x"}]
)
def test_headers(tmp_path: Path, changes: dict[str, str | None]) -> None:
    header = {key: value for key, value in (FORMAT | changes).items() if value is not None}
    save_file({"a": torch.eye(3)}, tmp_path / "s.safetensors", metadata=header)
    with pytest.raises(DataError, match="is damaged, or no statistics file"):
        Moments.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("matrix", "words"),
    [(torch.ones(3), "is damaged"), (torch.ones(2, 3), "is damaged"),
     (torch.full((2, 2), torch.nan), "not finite"), (torch.full((2, 2), torch.inf), "not finite")],
)  # fmt: skip
def test_matrices(tmp_path: Path, matrix: torch.Tensor, words: str) -> None:
    save_file({"a": matrix}, tmp_path / "s.safetensors", metadata=FORMAT)
    with pytest.raises(DataError, match=words):
        Moments.load(tmp_path / "s.safetensors")


def test_a_folder_is_no_statistics(tmp_path: Path) -> None:
    with pytest.raises(LightningEditError, match="no such file"):
        Moments.load(tmp_path)


def test_strange_files_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_EDIT_CACHE", str(tmp_path))
    folder = model_folder("m", ())
    folder.mkdir(parents=True)
    (folder / "a-float32-notes.safetensors").touch()
    assert find("m", ["a"]) == {"a": None}
    good(folder / "a-float32-c-9.safetensors")
    assert find("m", ["a"]) == {"a": folder / "a-float32-c-9.safetensors"}
