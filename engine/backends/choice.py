"""new_backend: the backend that a configuration names."""

from __future__ import annotations

import logging
from typing import Any

import torch

from pagefleet.engine.backends.base import Backend
from pagefleet.engine.backends.cpu.backend import CpuBackend
from pagefleet.engine.backends.cpu.native import load_library
from pagefleet.engine.backends.reference import ReferenceBackend
from pagefleet.engine.errors import ConfigError

__all__ = ["new_backend"]

logger = logging.getLogger(__name__)


def new_backend(name: str, device: torch.device, dtype: torch.dtype) -> Backend[Any, Any]:
    """Return a backend of `config.BACKENDS`. Without compiled kernels, "cpu" is the reference backend.

    Raises ConfigError if the backend does not support the device or the dtype.
    """
    if name != "cpu":
        return ReferenceBackend(device, dtype)
    if device.type != "cpu":
        raise ConfigError(f"backend cpu does not support device {device.type!r}; use backend reference.")
    if not CpuBackend.supports(dtype):
        used = str(dtype).removeprefix("torch.")
        raise ConfigError(f"backend cpu does not support dtype {used}; use bfloat16 or backend reference.")
    library = load_library()
    if library is None:
        logger.warning(
            "The kernels of backend cpu are not compiled, so backend reference runs, which is slower: "
            "install a C++ compiler such as g++, then install pagefleet again."
        )
        return ReferenceBackend(device, dtype)
    return CpuBackend(dtype, library)
