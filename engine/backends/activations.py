"""The activation functions of MLPs, by the names that config.json uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812

__all__ = ["ACTIVATIONS", "GATED_ACTIVATIONS", "activation", "gated_activation"]

_OAI_LIMIT: Final = 7.0
_OAI_ALPHA: Final = 1.702

_gelu_tanh = partial(F.gelu, approximate="tanh")

ACTIVATIONS: Final[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(_OAI_ALPHA * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def _clamped_swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The gated activation of gpt-oss: clamped, with a steeper sigmoid, and 1 added to `up`."""
    gate = gate.clamp(max=_OAI_LIMIT)
    return gate * torch.sigmoid(_OAI_ALPHA * gate) * (up.clamp(-_OAI_LIMIT, _OAI_LIMIT) + 1)


GATED_ACTIVATIONS: Final[Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "clamped_swiglu": _clamped_swiglu
}
"""Gated activations that are not act(gate) * up."""


def activation(x: torch.Tensor, name: str) -> torch.Tensor:
    return ACTIVATIONS[name](x)


def gated_activation(gate: torch.Tensor, up: torch.Tensor, name: str) -> torch.Tensor:
    """Return act(gate) * up, or the gated activation of that name."""
    if name in GATED_ACTIVATIONS:
        return GATED_ACTIVATIONS[name](gate, up)
    return ACTIVATIONS[name](gate).mul_(up)
