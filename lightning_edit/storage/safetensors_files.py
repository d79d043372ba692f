"""Deterministic safetensors files: equal content gives equal bytes and hashes.

safetensors writes its metadata in the order of a hash table, which differs from call to call; equal
tensors would get different hashes. Here the keys of the JSON header are sorted.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

#: Bytes of the length field at the start of a file, which gives the length of the JSON header.
_LENGTH = 8


def to_safetensors(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytearray:
    """Serialise tensors as safetensors bytes, deterministically.

    Args:
        tensors: Tensors by name; tensors on an accelerator are copied to the CPU.
        header: Metadata of the file.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = bytearray(save(plain, metadata=dict(header)))
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    content[_LENGTH:end] = _sort_keys(bytes(content[_LENGTH:end]))
    return content


def sort_header(path: Path) -> None:
    """Sort the JSON header of a safetensors file in place.

    Args:
        path: A file that was just written and is not yet at its final path.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(_LENGTH), "little")
        ordered = _sort_keys(file.read(size))
        file.seek(_LENGTH)
        file.write(ordered)


def _sort_keys(header: bytes) -> bytes:
    """Sort the keys of a JSON header; trailing spaces, as in the format, keep its length."""
    content = json.loads(header)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.encode().ljust(len(header))
