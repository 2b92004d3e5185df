"""The header of a GGUF file: its metadata, and the names, types, shapes and places of its tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little-endian).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from pagefleet.engine.errors import ModelLoadError

__all__ = ["GGUFHeader", "GGUFTensor", "read_gguf_header"]

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_F32, _F16 = 0, 1
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_SCALARS: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_ALIGNMENT: Final = 32


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of a GGUF file: where its data is, and how it is stored."""

    name: str
    shape: tuple[int, ...]
    """The dimensions in numpy's order; rows, the last dimension, are contiguous."""
    kind: int
    """The GGML type, such as 12 for Q4_K."""
    path: Path
    offset: int
    """The place of the data in the file, in bytes."""


@dataclass(frozen=True)
class GGUFHeader:
    """The header of a GGUF file, or of all files of one model."""

    metadata: Mapping[str, Any]
    """Values by key. The arrays of the tokenizer are left out unless they were asked for."""
    tensors: Mapping[str, GGUFTensor]

    @property
    def dtype(self) -> str:
        """The dtype to convert to: that of most weights, or bfloat16 if they are quantised."""
        counts: Counter[int] = Counter()
        for tensor in self.tensors.values():
            counts[tensor.kind] += prod(tensor.shape)
        main = counts.most_common(1)[0][0] if counts else _F32
        return {_F32: "float32", _F16: "float16"}.get(main, "bfloat16")

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of the architecture's `key`, such as "context_length"."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def read_gguf_header(path: Path, *, with_vocabulary: bool = False) -> GGUFHeader:
    """Return the header of `path`; with the tokenizer's arrays, which may be large, if `with_vocabulary`.

    Raises ModelLoadError if it is not a GGUF file, is truncated, or has an unknown version.
    """
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelLoadError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()!r}.")
        try:
            return _HeaderReader(file, path, with_vocabulary).read()
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ModelLoadError(f"{path} has a damaged GGUF header; download the file again.") from error


class _HeaderReader:
    """Reads the header from an open file. Raises struct.error at the end of the file."""

    def __init__(self, file: BinaryIO, path: Path, with_vocabulary: bool) -> None:
        self._file = file
        self._path = path
        self._size = path.stat().st_size
        self._with_vocabulary = with_vocabulary

    def read(self) -> GGUFHeader:
        if (version := self._unpack("I")) not in _VERSIONS:
            raise ModelLoadError(
                f"{self._path} has GGUF version {version}; only versions 2 and 3 in little-endian byte order "
                "are supported. Download a newer file."
            )
        num_tensors, num_entries = self._unpack("Q"), self._unpack("Q")
        metadata = {}
        for _ in range(num_entries):
            key = self._string().decode("utf-8")
            skips = key.startswith("tokenizer.") and not self._with_vocabulary
            value = self._value(self._unpack("I"), skips_arrays=skips)
            if value is not None:
                metadata[key] = value
        tensors = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        start = -(-self._file.tell() // alignment) * alignment
        placed = (
            GGUFTensor(name, shape, kind, self._path, start + offset) for name, shape, kind, offset in tensors
        )
        return GGUFHeader(metadata, {tensor.name: tensor for tensor in placed})

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape, type, and the offset from the start of the data."""
        name = self._string().decode("utf-8")
        dimensions = [self._unpack("Q") for _ in range(self._unpack("I"))]
        return name, tuple(reversed(dimensions)), self._unpack("I"), self._unpack("Q")

    def _value(self, kind: int, *, skips_arrays: bool) -> Any:
        """Return a value, or None for an array that is skipped."""
        if kind == _STRING:
            return self._string().decode("utf-8", errors="replace")
        if kind == _FLOAT32:
            # The shortest decimal is the number that was written: 1e-05, not 9.999999747378752e-06.
            return float(str(np.float32(self._unpack("f"))))
        if kind != _ARRAY:
            return self._unpack(_SCALARS[kind])
        item, count = self._unpack("I"), self._unpack("Q")
        if item not in _SCALARS:
            items = [self._value(item, skips_arrays=skips_arrays) for _ in range(count)]
            return None if skips_arrays else items
        layout = f"<{count}{_SCALARS[item]}"
        if skips_arrays:
            self._file.seek(struct.calcsize(layout), 1)
            return None
        return list(struct.unpack(layout, self._bytes(struct.calcsize(layout))))

    def _string(self) -> bytes:
        return self._bytes(self._unpack("Q"))

    def _bytes(self, count: int) -> bytes:
        # A damaged count may be huge: do not allocate that much memory.
        content = self._file.read(count) if count <= self._size else b""
        if len(content) < count:
            raise struct.error
        return content

    def _unpack(self, code: str) -> Any:
        layout = f"<{code}"
        return struct.unpack(layout, self._file.read(struct.calcsize(layout)))[0]
