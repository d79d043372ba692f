"""Scores of a validation are those of all processes, also where one has nothing to score."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.types import EditRequest
from tests.editors.hypernetwork.mending import trainer
from tests.editors.hypernetwork.test_ke import facts, small
from tests.forks import Forks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Bare(EditDataModule):
    """Facts without any rephrasing."""

    def load_split(self, split: str) -> list[EditRequest]:
        return [replace(one, rephrases=()) for one in facts(2)]


class Uneven(EditDataModule):
    """Four facts; those that the second of two processes gets have no rephrasing."""

    def load_split(self, split: str) -> list[EditRequest]:
        return [
            replace(one, rephrases=()) if number % 2 else one for number, one in enumerate(facts(4))
        ]


def scored(folder: str, devices: int) -> None:
    """Test an untrained network."""
    run = trainer(Path(folder), devices=devices, strategy="ddp" if devices > 1 else "auto")
    (found,) = run.test(small(), datamodule=Uneven(batch_size=1), verbose=False)
    (bare,) = run.test(small(other_facts=0), datamodule=Bare(batch_size=1), verbose=False)
    found |= {f"bare/{name}": value for name, value in bare.items()}
    torch.save(found, Path(folder) / f"{devices}-rank-{run.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.filterwarnings("error:.*sync_dist")
def test_two_processes_score_what_one_scores(tmp_path: Path, forks: Forks) -> None:
    forks.run(scored, tmp_path, 2, ranks=2)
    scored(str(tmp_path), 1)
    first, second, alone = (
        torch.load(tmp_path / f"{name}.pt") for name in ("2-rank-0", "2-rank-1", "1-rank-0")
    )
    assert first == second
    assert set(first) == set(alone)  # what no process has, none logs
    # Other facts are drawn by each process, so what depends on them is another.
    names = ["reliability/em@tf", "generalization/em@tf", "edit_nll"]
    for name in names:
        assert first[f"test/{name}"] == pytest.approx(alone[f"test/{name}"], abs=1e-6)
