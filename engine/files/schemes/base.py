"""Quantization: which format each linear layer of a checkpoint has. Each method of quantisation is a
subclass."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from fractions import Fraction

from pagefleet.engine.files.linear_weights import DENSE, WeightScheme

_ACTIVATION_PARTS = (
    "activation_scale",
    "input_global_scale",
    "input_scale",
    "input_scale_ub",
    "input_zero_point",
    "k_scale",
    "kv_scale",
    "output_scale",
    "output_zero_point",
    "q_scale",
    "v_scale",
)
"""Parameters of quantised activations and KV caches, which are not used: activations are not quantised."""


class Quantization(ABC):
    """The content of a `quantization_config`, for one method."""

    parameters: tuple[str, ...] = ()
    """The last parts of the names of tensors that only scale or order other tensors."""

    @abstractmethod
    def scheme_of(self, linear: str, stored: Container[str]) -> WeightScheme:
        """Return the format of a linear layer. `stored` has the names of all tensors.

        The stored tensors decide, because the lists of skipped layers name modules of transformers and not
        tensors: a layer without quantised tensors is dense.
        """

    def is_unused(self, tensor: str) -> bool:
        """Return whether a tensor quantises activations, which a model without quantised activations
        ignores."""
        return tensor.rpartition(".")[2] in _ACTIVATION_PARTS

    def num_dense(self, tensor: str, shape: Sequence[int]) -> int:
        """Return how many elements a stored tensor has when it is dequantised; 0 for parameters."""
        if tensor.endswith(self.parameters) or self.is_unused(tensor):
            return 0
        return int(math.prod(shape) * self._packing(tensor))

    def _packing(self, tensor: str) -> Fraction:
        """Return how many numbers one element of a stored tensor contains."""
        return Fraction(1)


class NoQuantization(Quantization):
    """A checkpoint with dense weights only."""

    def scheme_of(self, linear: str, stored: Container[str]) -> WeightScheme:
        return DENSE

    def is_unused(self, tensor: str) -> bool:
        return False
