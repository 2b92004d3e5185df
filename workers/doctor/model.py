"""Checks of the model: whether its files exist, are readable and converted, and fit on disk and in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from pagefleet.api.operate.doctor.finding import Finding, Target
from pagefleet.engine import EngineError
from pagefleet.engine.loading.checkpoint import locate
from pagefleet.engine.loading.model_cache import default_cache_dir
from pagefleet.engine.loading.model_size import ModelSize, model_size
from pagefleet.workers.doctor.cgroup import memory_limit
from pagefleet.workers.settings import WorkerSettings

_GIB: Final = 2**30
_UNPACKED: Final = 5
"""The largest factor by which a quantised file grows when it is converted to bf16."""
_BLOCK_SIZE: Final = 16
_KV_SHARE: Final = 0.25
"""The share of the free memory that a worker uses for its KV cache by default."""


def settings(target: Target) -> Iterable[Finding]:
    for name, near in WorkerSettings.unknown_variables():
        fix = f"did you mean {near}?" if near else "docs/settings.md lists all settings"
        yield Finding.warning("settings", f"{name} is not a setting", fix)


def model_files(target: Target) -> Iterable[Finding]:
    chosen = WorkerSettings.from_files(model=target.model)
    check, prepare = "model files", _prepare_command(chosen)
    if chosen.backend == "null":
        yield Finding.skipped(check, "the null backend does not need any")
        return
    try:
        source, folder = locate(chosen.model, chosen.cache_dir, chosen.revision)
    except EngineError as error:
        yield Finding.error(check, str(error).rstrip("."), prepare)
        return
    if not os.access(source, os.R_OK):
        yield Finding.error(check, f"this user cannot read {source}", f"chmod -R a+rX {source}")
    elif folder is None:
        yield Finding.warning(
            check, f"{source.name} is not converted yet; the first start of a worker converts it", prepare
        )
        yield _disk(chosen, source)
    else:
        yield Finding.ok(check, f"{chosen.model} in {folder}")


def memory(target: Target) -> Iterable[Finding]:
    """On a CPU, compare the free memory with the weights and the KV cache of a worker."""
    chosen = WorkerSettings.from_files(model=target.model)
    if chosen.backend == "null" or chosen.device != "cpu":
        return
    free = min(psutil.virtual_memory().available, memory_limit() or 2**63)
    try:
        folder = locate(chosen.model, chosen.cache_dir, chosen.revision).folder
        size = None if folder is None else model_size(folder, chosen.dtype)
    except (EngineError, OSError, ValueError, KeyError, TypeError):
        size = None
    if size is None:
        message = f"{free / _GIB:.1f} GiB free; what the model needs is unknown until it is converted"
        yield Finding.skipped("memory", message, _prepare_command(chosen))
        return
    yield _fits(chosen, size, free)


def _prepare_command(chosen: WorkerSettings) -> str:
    revision = "" if chosen.revision is None else f" --revision {chosen.revision}"
    return f"pagefleet prepare --model {chosen.model}{revision}"


def _fits(chosen: WorkerSettings, size: ModelSize, free: int) -> Finding:
    kv_bytes = _kv_bytes(chosen, size, free - size.weight_bytes)
    context = min(chosen.max_model_len or size.max_model_len, size.max_model_len)
    num_tokens = kv_bytes // size.kv_bytes_per_token
    message = (
        f"{free / _GIB:.1f} GiB free, {size.weight_bytes / _GIB:.2f} for weights, {kv_bytes / _GIB:.2f} for "
        f"{num_tokens:,} tokens of KV cache"
    )
    if size.weight_bytes + kv_bytes > free:
        return Finding.error(
            "memory", message, "free memory, lower PAGEFLEET_KV_MEMORY, or serve a smaller model"
        )
    if num_tokens < context:
        message += f": less than one context of {context:,} tokens"
        return Finding.warning("memory", message, "lower PAGEFLEET_MAX_MODEL_LEN, or free memory")
    return Finding.ok("memory", message)


def _kv_bytes(chosen: WorkerSettings, size: ModelSize, left: int) -> int:
    if chosen.num_blocks is not None:
        return chosen.num_blocks * _BLOCK_SIZE * size.kv_bytes_per_token
    if chosen.kv_memory is not None:
        return chosen.kv_memory
    most = chosen.max_num_seqs * (chosen.max_model_len or size.max_model_len) * size.kv_bytes_per_token
    return max(0, min(int(left * _KV_SHARE), most))


def _disk(chosen: WorkerSettings, source: Path) -> Finding:
    folder = chosen.cache_dir or default_cache_dir()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free, needed = shutil.disk_usage(existing).free, source.stat().st_size * _UNPACKED
    message = f"{free / _GIB:.1f} GiB free in {folder}, up to {needed / _GIB:.1f} needed"
    if not os.access(existing, os.W_OK):
        fix = "set PAGEFLEET_CACHE_DIR to a directory that this user can write to"
        return Finding.error("model cache", f"this user cannot write to {folder}", fix)
    if free < needed:
        return Finding.error(
            "model cache",
            message,
            "free disk space, or set PAGEFLEET_CACHE_DIR to a directory on a larger disk",
        )
    return Finding.ok("model cache", message)
