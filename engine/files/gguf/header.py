"""The header of a GGUF file: its metadata, and the names, types and shapes of its tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little-endian).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pagefleet.engine.errors import ModelLoadError

MAGIC = b"GGUF"
_F32, _F16 = 0, 1
_STRING, _ARRAY = 8, 9
_MAX_STRING = 1 << 28
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GGUFHeader:
    """The header of a GGUF file, as far as loading needs it before the conversion."""

    scalars: Mapping[str, Any]
    """Metadata by key, without arrays."""
    tensor_names: frozenset[str]
    num_elements: Mapping[int, int]
    """Number of elements of all tensors of each GGML type."""

    @property
    def dtype(self) -> str:
        """The dtype to convert to: that of most weights, or bfloat16 if they are quantised."""
        main = max(self.num_elements, key=lambda kind: self.num_elements[kind], default=_F32)
        return {_F32: "float32", _F16: "float16"}.get(main, "bfloat16")

    @property
    def architecture(self) -> str:
        return str(self.scalars.get("general.architecture", "unknown"))


def read_gguf_header(path: Path) -> GGUFHeader:
    """Return the header of `path`. Raises ModelLoadError if it is not a GGUF file, or is truncated."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelLoadError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()!r}.")
        try:
            return _read_header(file)
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ModelLoadError(f"{path} has a damaged GGUF header; download the file again.") from error


def _read_header(file: BinaryIO) -> GGUFHeader:
    _unpack(file, "I")  # version
    num_tensors, num_entries = _unpack(file, "Q"), _unpack(file, "Q")
    scalars = {}
    for _ in range(num_entries):
        key = _read_string(file).decode("utf-8")
        value = _read_value(file, _unpack(file, "I"))
        if value is not None:
            scalars[key] = value
    names = []
    num_elements: dict[int, int] = {}
    for _ in range(num_tensors):
        names.append(_read_string(file).decode("utf-8"))
        size = 1
        for _ in range(_unpack(file, "I")):
            size *= _unpack(file, "Q")
        kind = _unpack(file, "I")
        num_elements[kind] = num_elements.get(kind, 0) + size
        _unpack(file, "Q")  # offset
    return GGUFHeader(scalars, frozenset(names), num_elements)


def _read_value(file: BinaryIO, kind: int) -> Any:
    """Return a scalar, or None for an array, which is skipped."""
    if kind == _STRING:
        return _read_string(file).decode("utf-8", errors="replace")
    if kind != _ARRAY:
        return _unpack(file, _SCALARS[kind])
    item, count = _unpack(file, "I"), _unpack(file, "Q")
    if item in _SCALARS:
        file.seek(count * struct.calcsize(f"<{_SCALARS[item]}"), 1)
    else:
        for _ in range(count):
            _read_value(file, item)
    return None


def _read_string(file: BinaryIO) -> bytes:
    size = _unpack(file, "Q")
    # A damaged size may be huge: do not allocate that much memory.
    content = file.read(size) if size <= _MAX_STRING else b""
    if len(content) < size:
        raise struct.error
    return content


def _unpack(file: BinaryIO, code: str) -> Any:
    layout = f"<{code}"
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]
