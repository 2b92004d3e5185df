"""ExpertWeights: the linear layers of all experts of a layer, which a checkpoint stores in the same
tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.linear_weights import LinearWeights, WeightScheme


@dataclass(frozen=True)
class ExpertWeights:
    """The weights of one linear layer of each expert."""

    parts: Mapping[str, torch.Tensor]
    """The stored tensors. The first dimension is the expert; the others are those of `scheme`."""
    scheme: WeightScheme
    bias: torch.Tensor | None = None
    """[experts, out], or None."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, output features, input features). Raises ModelLoadError if the tensors do not match."""
        sizes = {name: len(tensor) if tensor.ndim else 0 for name, tensor in self.parts.items()}
        num_experts = max(sizes.values())
        if set(sizes.values()) != {num_experts} or num_experts == 0:
            raise ModelLoadError(
                f"the tensors have different numbers of experts ({sizes}); download the model again."
            )
        return (num_experts, *self.expert(0).shape)

    def expert(self, index: int) -> LinearWeights:
        """Return the weights of one expert; they share the memory of `parts`."""
        parts = {name: tensor[index] for name, tensor in self.parts.items()}
        return LinearWeights(parts, self.scheme, None if self.bias is None else self.bias[index])

    def dense(self) -> torch.Tensor:
        """Return the matrices [experts, out, in]; see `LinearWeights.dense`. One expert is dequantised at a
        time."""
        num_experts = self.shape[0]
        first = self.expert(0).dense()
        matrices = first.new_empty(num_experts, *first.shape)
        matrices[0] = first
        for index in range(1, num_experts):
            matrices[index] = self.expert(index).dense()
        return matrices
