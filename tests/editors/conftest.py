"""The language model that learned editors are tried on."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import shared_path


@pytest.fixture(scope="module")
def gpt2() -> tuple[Any, Any]:
    path = shared_path("golden/models/tiny-gpt2")
    return (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(path),
    )
