"""The seed of a run is part of its editor, also where a run is resumed or opened."""

from pathlib import Path

import pytest

from lightning_edit.editors import WISE
from lightning_edit.exceptions import ConfigError
from lightning_edit.session.open import _described
from lightning_edit.session.shipping import keep_editor
from lightning_edit.storage.run_folder import RunFolder
from tests.toy import toy_model, toy_tokenizer


def test_a_run_is_not_resumed_with_other_masks(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for seed in (3, 3):
        keep_editor(folder, WISE(seed=seed).bind(toy_model(), toy_tokenizer()))
    with pytest.raises(ConfigError, match="begun by WISE with seed 3, and this one has 4"):
        keep_editor(folder, WISE(seed=4).bind(toy_model(), toy_tokenizer()))


def test_a_configuration_is_read_with_the_seed_of_its_run() -> None:
    inner = {"class_path": "lightning_edit.editors.ROME", "init_args": {"seed": 1}}
    outer = {"class_path": "lightning_edit.editors.LTI", "init_args": {"editor": inner, "k": 2}}
    assert _described(outer, 5) == {
        "class": "LTI",
        "args": {"editor": {"class": "ROME", "args": {"seed": 6}}, "k": 2},
    }
