"""safetensors files whose bytes depend on their content alone.

safetensors writes its metadata in the order of a hash table, which differs from call to call; equal
tensors would get unequal hashes. Here the JSON at the head of a file is put in alphabetical order.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

#: A file begins with the length of its JSON in so many bytes.
_LENGTH = 8


def to_safetensors(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytearray:
    """Return the bytes of a safetensors file: the same for the same content, every time.

    Args:
        tensors: By name; those on an accelerator are copied.
        header: Its metadata.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = bytearray(save(plain, metadata=dict(header)))
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    content[_LENGTH:end] = _ordered(bytes(content[_LENGTH:end]))
    return content


def order_header(path: Path) -> None:
    """Put the metadata of a safetensors file on disk in order, in place.

    Args:
        path: A file that was just written and has no name yet that others know.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(_LENGTH), "little")
        ordered = _ordered(file.read(size))
        file.seek(_LENGTH)
        file.write(ordered)


def _ordered(header: bytes) -> bytes:
    """Sort the keys of a header; blanks at its end keep its length, as the format does."""
    content = json.loads(header)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.encode().ljust(len(header))
