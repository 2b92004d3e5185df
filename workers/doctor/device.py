"""Checks of torch, CUDA and Triton: whether they are there, and belong together."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pagefleet.api.operate.doctor.finding import Finding, Patient
from pagefleet.workers.settings import WorkerSettings

_DRIVER: Final = Path("/proc/driver/nvidia/version")
_INSTALL_CUDA: Final = "install torch's CUDA build: https://pytorch.org/get-started/locally"


def cuda(patient: Patient) -> Iterable[Finding]:
    import torch

    wanted = WorkerSettings.from_files().device.startswith("cuda")
    built_for = torch.version.cuda or torch.version.hip
    yield Finding.ok("torch", f"{torch.__version__}, built for {f'CUDA {built_for}' if built_for else 'CPU'}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info(0)
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free on the first"
        yield Finding.ok("CUDA", f"{', '.join(names)}; {memory}")
        if not wanted:
            yield Finding.warning("device", "settings say cpu, and there is a GPU", "PAGEFLEET_DEVICE=cuda")
    elif wanted:
        mend = _INSTALL_CUDA if not built_for else "look at nvidia-smi: the driver may be missing or too old"
        yield Finding.wrong("CUDA", "settings say cuda, and torch finds no GPU", mend)
    elif _DRIVER.exists():
        yield Finding.warning("CUDA", "there is an NVIDIA driver, but torch uses no GPU", _INSTALL_CUDA)
    else:
        yield Finding.ok("CUDA", "no GPU here, and none is asked for")


def triton(patient: Patient) -> Iterable[Finding]:
    """A CUDA build of torch names the one version of Triton that it was made with."""
    required = triton_for(importlib.metadata.requires("torch") or [])
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        yield Finding.warning("triton", "not installed", f"pip install triton=={required or ''}".rstrip("="))
        return
    if required is not None and required != version:
        yield Finding.wrong("triton", f"{version}, torch wants {required}", f"pip install triton=={required}")
    else:
        torchs = "the one that torch wants" if required else "this build of torch wants none"
        yield Finding.ok("triton", f"{version}, {torchs}")


def triton_for(requirements: Iterable[str]) -> str | None:
    for requirement in requirements:
        found = re.match(r"triton\s*==\s*([\w.+]+)", requirement)
        if found:
            return found[1]
    return None
