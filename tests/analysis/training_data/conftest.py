"""One fine-tuned tiny model for the tests of this room."""

from pathlib import Path

import pytest

from tests.analysis.training_data.tuned import Tuned, fine_tune


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder: Path = tmp_path_factory.mktemp("tuned")
    return fine_tune(folder)
