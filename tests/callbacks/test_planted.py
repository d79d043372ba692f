"""Editors with a planted fault, on the embedded model: the measure that is made for it shows it."""

from pathlib import Path
from typing import Any

import pytest

from lightning_edit.callbacks import (
    CollapseCallback,
    CollapseGuard,
    DriftCallback,
    EfficiencyCallback,
    OverfittingCallback,
)
from lightning_edit.datamodules import AtlasDataModule
from lightning_edit.editors import FT, ROME, Editor
from lightning_edit.models.loading import load_language_model
from lightning_edit.session.trainer import EditTrainer
from tests.callbacks.planted import Destroys, DoesNothing, Forgets, Leaks, NeverStops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]


def measured(
    run: Path, editor: Editor, *callbacks: Any, limit: int = 6, **options: Any
) -> dict[str, Any]:
    """Edit the first facts of the atlas one after the other; return the last point."""
    editor.bind(*load_language_model())
    trainer = EditTrainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, callbacks=list(callbacks)
    )
    results = trainer.edit(editor, AtlasDataModule(limit=limit), run=str(run), **options)
    return results["points"][-1]


def test_a_sound_editor_passes(tmp_path: Path) -> None:
    """What the faults below are told apart from."""
    point = measured(
        tmp_path,
        ROME(),
        DriftCallback(),
        CollapseCallback(),
        OverfittingCallback(),
        EfficiencyCallback(),
    )
    now = point["metrics"]
    assert now["drift.reliability/retention@gen"] == 1.0
    assert "drift.reliability/half_life@gen" not in now
    assert 1 < now["drift/l2_growth"] < 1.5
    assert now["collapse/perplexity_ratio"] < 1.1
    assert now["overfitting.subject_specificity/leak@gen"] < 0.2
    assert now["overfitting.subject_specificity/eos@tf"] > 0.7
    assert now["efficiency/rank"] == 1
    assert 0.9 < now["efficiency/energy@rank8"] <= 1
    stages = sum(now[f"efficiency/{stage}_seconds"] for stage in ("search", "solve", "other"))
    assert stages + now["efficiency/commit_seconds"] == pytest.approx(now["efficiency/seconds"])
    # Bytes of one rank-one update: a column and a row of float32.
    assert now["efficiency/delta_bytes"] == 4 * (192 + 640)


def test_an_editor_that_does_nothing(tmp_path: Path) -> None:
    callbacks = DriftCallback(), CollapseCallback(), OverfittingCallback()
    now = measured(tmp_path, DoesNothing(ROME()), *callbacks)["metrics"]
    assert now["reliability/em@gen"] == 0.0
    assert "drift.reliability/retention@gen" not in now  # nothing was there to be kept
    assert now["drift/update_norm"] == 0.0
    assert now["drift/l2_growth"] == 1.0
    assert now["drift/hidden_l2"] == 0.0
    assert now["collapse/perplexity_ratio"] == 1.0
    assert now["overfitting.subject_specificity/leak@gen"] == 0.0


def test_an_editor_that_destroys_the_model(tmp_path: Path) -> None:
    ids = [request.id for request in AtlasDataModule(limit=6).requests("test")]
    watch = [CollapseCallback(every_n_commits=1), DriftCallback()]
    ruined = Destroys(ROME(), (ids[2],), 3.0)
    now = measured(tmp_path / "ruined", ruined, *watch, limit=3)["metrics"]
    assert now["collapse/perplexity_ratio"] > 100
    assert now["collapse/first_broken"] == 3
    assert now["collapse/ngram_entropy"] > 0
    assert now["drift/hidden_cosine"] > 0.3
    watch = [CollapseCallback(every_n_commits=1), CollapseGuard()]
    saved = Destroys(ROME(), (ids[2],), 3.0)
    point = measured(tmp_path / "saved", saved, *watch, limit=4)
    assert point["metrics"]["collapse/perplexity_ratio"] < 1.1
    assert point["metrics"]["reliability/em@gen"] == 0.75


def test_an_editor_that_leaks_its_answer(tmp_path: Path) -> None:
    trained = FT(steps=40, lr=2e-3, objective="target_new")
    leaky = measured(tmp_path / "leaky", Leaks(trained), OverfittingCallback(), limit=3)["metrics"]
    sound = FT(steps=40, lr=2e-3, objective="target_new")
    told = measured(tmp_path / "sound", sound, OverfittingCallback(), limit=3)["metrics"]
    group = "overfitting.subject_specificity"
    for mode in ("tf", "gen"):
        assert leaky[f"{group}/leak@{mode}"] > 0.6
        assert told[f"{group}/leak@{mode}"] < 0.2
    assert leaky[f"{group}/eos@tf"] < 0.4 < told[f"{group}/eos@tf"]
    assert leaky[f"{group}/dp@tf"] > 0.5 > told[f"{group}/dp@tf"]


def test_an_editor_that_forgets_earlier_edits(tmp_path: Path) -> None:
    now = measured(tmp_path, Forgets(ROME()), DriftCallback())["metrics"]
    assert now["reliability/em@gen"] == pytest.approx(1 / 6)
    assert now["drift.reliability/retention@gen"] == 0.0
    assert now["drift.reliability/half_life@gen"] == pytest.approx(0.5)


def test_an_editor_whose_answers_never_end(tmp_path: Path) -> None:
    endless = NeverStops(FT(steps=40, lr=2e-3, objective="target_new"))
    now = measured(tmp_path, endless, limit=3, protocol="single")["metrics"]
    assert now["reliability/em@tf"] - now["reliability/em@gen"] > 0.6
