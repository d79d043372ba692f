"""Packaged default data: an atlas of real-world facts, and two small language models that know it.

Importing this package loads neither torch nor transformers.
"""

from pathlib import Path

from lightning_edit.atlas.graph import Atlas, load_atlas
from lightning_edit.atlas.text import corpus

#: Folder of the default language model and its tokenizer, in the Hugging Face layout.
MODEL_PATH = Path(__file__).parent / "model"
#: The same of the model of two stacks, ``atlas-t5``.
T5_MODEL_PATH = Path(__file__).parent / "model_t5"

__all__ = ["MODEL_PATH", "T5_MODEL_PATH", "Atlas", "corpus", "load_atlas"]
