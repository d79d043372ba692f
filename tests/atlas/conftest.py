"""The graph and its training text, made once: they are read-only."""

import pytest

from lightning_edit.atlas import Atlas, load_atlas
from lightning_edit.atlas.text import sentences


@pytest.fixture(scope="session")
def atlas() -> Atlas:
    return load_atlas()


@pytest.fixture(scope="session")
def stated(atlas: Atlas) -> dict[str, str]:
    """Answer of each prompt in the training text."""
    return {sentence.prompt: sentence.answer for sentence in sentences(atlas)}
