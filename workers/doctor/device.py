"""Checks of torch, CUDA and Triton: whether they are installed and compatible."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pagefleet.api.operate.doctor.finding import Finding, Target
from pagefleet.workers.settings import WorkerSettings

_DRIVER: Final = Path("/proc/driver/nvidia/version")
_INSTALL_CUDA: Final = "install torch's CUDA build: https://pytorch.org/get-started/locally"


def cuda(target: Target) -> Iterable[Finding]:
    import torch

    wanted = WorkerSettings.from_files().device.startswith("cuda")
    built_for = torch.version.cuda or torch.version.hip
    yield Finding.ok("torch", f"{torch.__version__}, built for {f'CUDA {built_for}' if built_for else 'CPU'}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info(0)
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free on the first GPU"
        yield Finding.ok("CUDA", f"{', '.join(names)}; {memory}")
        if not wanted:
            yield Finding.warning(
                "device", "the setting is cpu, but there is a GPU", "set PAGEFLEET_DEVICE=cuda"
            )
    elif wanted:
        fix = _INSTALL_CUDA if not built_for else "run nvidia-smi: the driver may be missing or too old"
        yield Finding.error("CUDA", "the setting is cuda, but torch finds no GPU", fix)
    elif _DRIVER.exists():
        yield Finding.warning(
            "CUDA", "an NVIDIA driver is installed, but torch cannot use a GPU", _INSTALL_CUDA
        )
    else:
        yield Finding.ok("CUDA", "not needed: there is no GPU, and the setting is cpu")


def triton(target: Target) -> Iterable[Finding]:
    """A CUDA build of torch requires exactly one version of Triton."""
    required = triton_for(importlib.metadata.requires("torch") or [])
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        yield Finding.warning("triton", "not installed", f"pip install triton=={required or ''}".rstrip("="))
        return
    if required is not None and required != version:
        yield Finding.error(
            "triton", f"{version}, but torch requires {required}", f"pip install triton=={required}"
        )
    else:
        reason = "as torch requires" if required else "this build of torch does not require it"
        yield Finding.ok("triton", f"{version}, {reason}")


def triton_for(requirements: Iterable[str]) -> str | None:
    for requirement in requirements:
        found = re.match(r"triton\s*==\s*([\w.+]+)", requirement)
        if found:
            return found[1]
    return None
