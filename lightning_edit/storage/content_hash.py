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


def is_plain(content: Any) -> bool:
    """Return whether :func:`content_hash` is exact for some content.

    Args:
        content: Anything.
    """
    if isinstance(content, Mapping):
        return all(is_plain(one) for pair in content.items() for one in pair)
    if isinstance(content, list | tuple):
        return all(is_plain(one) for one in content)
    return content is None or isinstance(content, Tensor | bool | int | float | str | bytes)


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
