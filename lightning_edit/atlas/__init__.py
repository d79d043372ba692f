"""Packaged default data: an atlas of real-world facts, and a small language model trained on it.

Importing this package loads neither torch nor transformers.
"""

from pathlib import Path

from lightning_edit.atlas.graph import Atlas, load_atlas
from lightning_edit.atlas.text import corpus

#: Folder of the language model and its tokenizer, in the Hugging Face layout.
MODEL_PATH = Path(__file__).parent / "model"

__all__ = ["MODEL_PATH", "Atlas", "corpus", "load_atlas"]
