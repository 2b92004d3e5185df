"""Finds and calls the C++ library. Does not know torch's tensors: arguments are addresses and numbers.

`pip install` compiles the library (pyproject.toml, ext-modules) if there is a C++ compiler; in a source tree,
so does `make kernels`.

The library has no OpenMP runtime of its own. It uses the one that torch has loaded, so that both share one
team of threads: two teams would wait for each other's cores.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ELEMENTS",
    "Kernels",
    "LayerArguments",
    "Library",
    "NormArguments",
    "Schedule",
    "StepArguments",
    "find_library",
    "load_library",
]

ELEMENTS: Final = ("bfloat16", "float32", "float64")
"""The dtypes of the kernels, in the order of the library's numbers."""

_EXTENSION: Final = "pagefleet.engine.backends.cpu._kernels"
_OPENMP_RUNTIMES: Final = ("libgomp", "libiomp5", "libomp")
_ITEM_FIELDS: Final = 6
_MERGE_FIELDS: Final = 5


def _fields(ctype: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, ctype) for name in names.split()]


class NormArguments(Structure):
    """See kernels/arguments.hpp, as for the other structures."""

    _fields_ = (
        *_fields(c_void_p, "weight bias"),
        ("eps", c_double),
        *_fields(c_int64, "exists centred across_heads per_head"),
    )


class LayerArguments(Structure):
    _fields_ = (
        *_fields(c_void_p, "keys values sinks"),
        *_fields(NormArguments, "query_norm key_norm"),
        *_fields(c_double, "scale soft_cap"),
        *_fields(
            c_int64,
            "num_heads num_kv_heads head_dim value_dim block_size window rotated first_rotated interleaved",
        ),
    )


class StepArguments(Structure):
    _fields_ = (
        *_fields(
            c_void_p,
            "positions sequences starts context_lens block_tables cosines sines query_factors items merges "
            "workspace",
        ),
        *_fields(c_int64, "num_tokens table_width num_items num_merges num_partials num_threads"),
    )


class _ScheduleArguments(Structure):
    _fields_ = (
        *_fields(c_void_p, "query_lens context_lens"),
        *_fields(c_int64, "num_sequences num_heads num_kv_heads block_size window num_threads"),
    )


class _ScheduleSizes(Structure):
    _fields_ = tuple(_fields(c_int64, "num_items num_merges num_partials"))


_WORKSPACE_BYTES = ctypes.CFUNCTYPE(c_int64, POINTER(LayerArguments), POINTER(StepArguments))
_ATTEND = ctypes.CFUNCTYPE(None, POINTER(LayerArguments), POINTER(StepArguments), c_void_p, c_int64, c_void_p)
_ADD_NORM = ctypes.CFUNCTYPE(
    None,
    POINTER(NormArguments),
    *(c_void_p, c_void_p, c_double, c_void_p, c_void_p),
    *(c_int64, c_int64, c_int64),
)
_GATE = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64)


class _KernelTable(Structure):
    _fields_ = (
        ("workspace_bytes", _WORKSPACE_BYTES),
        ("attend", _ATTEND),
        ("add_norm", _ADD_NORM),
        ("gate", _GATE),
    )


class Kernels(NamedTuple):
    """The functions for one dtype and one instruction set; see the C++ files of these names."""

    workspace_bytes: Callable[..., int]
    attend: Callable[..., None]
    add_norm: Callable[..., None]
    gate: Callable[..., None]


class Schedule(NamedTuple):
    """The items of a step for one kind of layer, the largest first; see kernels/arguments.hpp."""

    items: NDArray[np.int64]
    merges: NDArray[np.int64]
    num_partials: int


class Library:
    """The loaded library.

    Attributes:
        targets: the instruction sets that this processor has, the fastest first.
    """

    def __init__(self, path: Path) -> None:
        _share_openmp()
        self._library = ctypes.CDLL(str(path))
        self._library.pagefleet_target.restype = c_char_p
        self._library.pagefleet_target.argtypes = [c_int64]
        self._library.pagefleet_kernels.restype = POINTER(_KernelTable)
        self._library.pagefleet_kernels.argtypes = [c_char_p, c_int64]
        self._schedule = self._library.pagefleet_schedule
        self._schedule.restype = None
        self.targets = tuple(self._targets())

    def _targets(self) -> list[str]:
        names: list[str] = []
        while (name := self._library.pagefleet_target(len(names))) is not None:
            names.append(name.decode())
        return names

    def kernels(self, dtype: str, target: str) -> Kernels:
        """Return the kernels for a dtype of `ELEMENTS` and one of `targets`."""
        table = self._library.pagefleet_kernels(target.encode(), ELEMENTS.index(dtype)).contents
        return Kernels(*(getattr(table, name) for name in Kernels._fields))

    def schedule(
        self,
        query_lens: NDArray[np.int64],
        context_lens: NDArray[np.int64],
        *,
        num_heads: int,
        num_kv_heads: int,
        block_size: int,
        window: int,
        num_threads: int,
    ) -> Schedule:
        """Return the schedule of a step for layers with these heads and this window (0: none)."""
        arguments = _ScheduleArguments(
            query_lens.ctypes.data, context_lens.ctypes.data, len(query_lens), num_heads, num_kv_heads,
            block_size, window, num_threads,
        )  # fmt: skip
        sizes = _ScheduleSizes()
        self._schedule(byref(arguments), None, None, byref(sizes))
        items = np.empty((sizes.num_items, _ITEM_FIELDS), dtype=np.int64)
        merges = np.empty((sizes.num_merges, _MERGE_FIELDS), dtype=np.int64)
        self._schedule(
            byref(arguments), c_void_p(items.ctypes.data), c_void_p(merges.ctypes.data), byref(sizes)
        )
        return Schedule(items, merges, sizes.num_partials)


def find_library() -> Path | None:
    """Return the compiled library, or None if it was not compiled."""
    found = importlib.util.find_spec(_EXTENSION)
    return None if found is None or found.origin is None else Path(found.origin)


@cache
def load_library() -> Library | None:
    """Load the library; return None if it was not compiled."""
    path = find_library()
    return None if path is None else Library(path)


def _share_openmp() -> None:
    """Make the symbols of the process's OpenMP runtime, which torch has loaded, visible to the library."""
    maps = Path("/proc/self/maps")
    mapped = {line.split()[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    names = _named(sorted(mapped), _OPENMP_RUNTIMES)
    ctypes.CDLL(names[0] if names else "libgomp.so.1", mode=ctypes.RTLD_GLOBAL)


def _named(paths: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    return [path for path in paths if Path(path).name.startswith(tuple(prefixes))]
