"""Hash of plain containers and tensors, to notice a checkpoint that was changed."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def content_hash(content: Any) -> str:
    """Return a SHA-256 of nested containers, equal for equal content whatever its memory layout.

    Args:
        content: Mappings, sequences, tensors, and values with an exact ``repr`` (numbers, texts,
            ``None``). The order of a mapping counts.
    """
    found = hashlib.sha256()
    _add(content, found)
    return found.hexdigest()


def _add(content: Any, found: Any) -> None:
    if isinstance(content, Tensor):
        plain = content.detach().cpu().contiguous()
        found.update(f"tensor {plain.dtype} {tuple(plain.shape)};".encode())
        # A view as bytes: NumPy knows no bfloat16.
        found.update(plain.flatten().view(torch.uint8).numpy())
    elif isinstance(content, Mapping):
        found.update(f"mapping {len(content)};".encode())
        for key, value in content.items():
            _add(key, found)
            _add(value, found)
    elif isinstance(content, Sequence) and not isinstance(content, str | bytes):
        found.update(f"sequence {len(content)};".encode())
        for value in content:
            _add(value, found)
    else:
        text = f"{type(content).__name__} {content!r}"
        found.update(f"{len(text.encode())} {text};".encode())
