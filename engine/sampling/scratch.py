"""Scratch: memory that passes over whole rows use again on a CPU: fresh memory costs as much as the pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Scratch"]


class Scratch:
    """Named pieces of memory, for one thread."""

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def get(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return memory that the next call with this name uses again."""
        num_elements = int(np.prod(shape))
        held = self._held.get(name)
        if held is None or held.dtype != dtype or len(held) < num_elements:
            held = self._held[name] = torch.empty(num_elements, dtype=dtype)
        return held[:num_elements].view(*shape)

    def copy_rows(self, rows: torch.Tensor, index: NDArray[np.int64], dtype: torch.dtype) -> torch.Tensor:
        """Return copies of some rows; the next call uses their memory again."""
        copied = self.get("rows", (len(index), rows.shape[-1]), dtype)
        for copy, row in zip(copied.unbind(), index.tolist(), strict=True):
            copy.copy_(rows[row])
        return copied
