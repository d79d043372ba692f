"""Where the tests find material that is not part of the project."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checking import install
from tests.forks import Forks

install()  # before the library is imported

ROOT = Path(__file__).resolve().parent.parent

#: About how many seconds the slow tests of a file take, where it is many.
LONG: dict[str, float] = {
    "tests/benchmark/test_run.py": 40,
    "tests/benchmark/test_slurm.py": 30,
    "tests/cli/test_run_folder_options.py": 30,
    "tests/cli/test_signals.py": 30,
    "tests/cli/test_sweep.py": 40,
    "tests/editors/hypernetwork/test_ke.py": 60,
    "tests/editors/hypernetwork/test_recipes.py": 50,
    "tests/editors/memory/test_real_models.py": 190,
    "tests/editors/test_real_gemma.py": 200,
    "tests/editors/memory/test_grace_golden.py": 30,
    "tests/editors/memory/test_wise_golden.py": 30,
    "tests/editors/neurons/test_instruct_model.py": 80,
    "tests/editors/neurons/test_t_patcher.py": 80,
    "tests/editors/prompting/test_instruct_model.py": 60,
    "tests/editors/routing/test_serac_models.py": 30,
    "tests/editors/routing/test_serac_two_stacks.py": 60,
    "tests/editors/test_two_stacks_trained.py": 130,
    "tests/edits/test_instruct_model.py": 90,
    "tests/session/test_edit_session.py": 40,
    "tests/session/test_passes.py": 70,
    "tests/session/test_ranks.py": 150,
    "tests/test_configs.py": 200,
    "tests/test_foreign_project.py": 30,
    "tests/test_readme.py": 25,
    "tests/test_tutorials.py": 40,
}


def shared_path(name: str) -> Path:
    """Return ``name`` ("data/zsre", "golden", "models/gpt2") of the shared material, or skip.

    ``$LIGHTNING_EDIT_DATA``, ``$LIGHTNING_EDIT_GOLDEN`` and ``$LIGHTNING_EDIT_MODELS`` say where
    the three folders are; otherwise they are looked for in ``../shared`` beside the repository.
    """
    folder, _, rest = name.partition("/")
    variable = f"LIGHTNING_EDIT_{folder.upper()}"
    base = Path(os.environ.get(variable) or ROOT.parent / "shared" / folder)
    path = base / rest if rest else base
    if not path.exists():
        pytest.skip(f"{path} is absent; set ${variable} to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """What starts several processes at a time; see ``tests/forks.py``."""
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist deal files in the order below, not by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)  # after tests were chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: a run ends when the last of its files does."""
    seconds: dict[Path, float] = {}
    for item in items:
        long = LONG.get(item.path.relative_to(ROOT).as_posix(), 0.0)
        known = long if item.get_closest_marker("slow") else 0.0
        seconds[item.path] = max(seconds.get(item.path, 0.0), known) + 0.1
    items.sort(key=lambda item: -seconds[item.path])
