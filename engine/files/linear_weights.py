"""LinearWeights: the weights of one linear layer as a checkpoint stores them, dense or quantised. Does not
know files, models or backends.

A backend that computes on quantised weights reads `parts` and `scheme`; every other backend calls `dense()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pagefleet.engine.errors import ModelLoadError


class WeightScheme(ABC):
    """The format of the stored tensors of a linear layer. Each tensor has a name, such as "weight" or
    "scales"."""

    name: str
    required: tuple[str, ...]
    """The names of the tensors; the first one contains the weights."""
    optional: tuple[str, ...] = ()

    @abstractmethod
    def shape(self, parts: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        """Return (output features, input features). Raises ModelLoadError if the tensors do not match."""

    @abstractmethod
    def dense(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the matrix [out, in]: in the dtype of the checkpoint if it is stored dense, else
        dequantised to float32."""


class DenseScheme(WeightScheme):
    """One matrix "weight" [out, in] in a floating point dtype."""

    name = "dense"
    required = ("weight",)

    def shape(self, parts: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        weight = parts["weight"]
        if weight.ndim != 2 or not weight.is_floating_point() or weight.element_size() < 2:
            raise ModelLoadError(
                f"weight has the shape {tuple(weight.shape)} and the dtype {weight.dtype}, but a layer that "
                "is not quantised needs a matrix of bfloat16, float16, float32 or float64; download the "
                "model again."
            )
        out_features, in_features = weight.shape
        return out_features, in_features

    def dense(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return parts["weight"]


DENSE = DenseScheme()


@dataclass(frozen=True)
class LinearWeights:
    """The weights of y = x W^T + b."""

    parts: Mapping[str, torch.Tensor]
    """The stored tensors; their names, shapes and dtypes depend on the scheme."""
    scheme: WeightScheme
    bias: torch.Tensor | None = None
    """[out], or None."""

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None = None) -> LinearWeights:
        """Return dense weights of a matrix [out, in]."""
        return cls({"weight": weight}, DENSE, bias)

    @property
    def shape(self) -> tuple[int, int]:
        """(output features, input features)."""
        return self.scheme.shape(self.parts)

    def dense(self) -> torch.Tensor:
        """Return the matrix [out, in]; a quantised one is dequantised again at every call."""
        return self.scheme.dense(self.parts)
