"""Checks of the model: whether it is here, can be read, is converted, and fits the disk and the memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from pagefleet.api.operate.doctor.finding import Finding, Patient
from pagefleet.engine import EngineError
from pagefleet.engine.loading.checkpoint import locate
from pagefleet.engine.loading.model_cache import default_cache_dir
from pagefleet.engine.loading.model_size import ModelSize, model_size
from pagefleet.workers.doctor.cgroup import memory_limit
from pagefleet.workers.settings import WorkerSettings

_GIB: Final = 2**30
_UNPACKED: Final = 5
"""A quantised file becomes at most about so much larger in bf16."""
_BLOCK_SIZE: Final = 16
_KV_SHARE: Final = 0.25
"""What a worker takes of the free memory for its KV cache where settings do not say."""


def settings(patient: Patient) -> Iterable[Finding]:
    for name, near in WorkerSettings.unknown_variables():
        mend = f"did you mean {near}?" if near else "docs/settings.md has all of them"
        yield Finding.warning("settings", f"{name} is no setting", mend)


def model_files(patient: Patient) -> Iterable[Finding]:
    chosen = WorkerSettings.from_files(model=patient.model)
    check, prepare = "model files", f"pagefleet prepare --model {chosen.model}"
    if chosen.backend == "null":
        yield Finding.skipped(check, "the null backend has none")
        return
    try:
        source, folder = locate(chosen.model, chosen.cache_dir)
    except EngineError as error:
        yield Finding.wrong(check, str(error).rstrip("."), prepare)
        return
    if not os.access(source, os.R_OK):
        yield Finding.wrong(check, f"{source} may not be read by this user", f"chmod -R a+rX {source}")
    elif folder is None:
        yield Finding.warning(check, f"{source.name} is not converted yet: the first start does it", prepare)
        yield _disk(chosen, source)
    else:
        yield Finding.ok(check, f"{chosen.model} in {folder}")


def memory(patient: Patient) -> Iterable[Finding]:
    """On a CPU: what is free now against weights and KV cache, as a worker would take them."""
    chosen = WorkerSettings.from_files(model=patient.model)
    if chosen.backend == "null" or chosen.device != "cpu":
        return
    free = min(psutil.virtual_memory().available, memory_limit() or 2**63)
    try:
        folder = locate(chosen.model, chosen.cache_dir).folder
        size = None if folder is None else model_size(folder, chosen.dtype)
    except (EngineError, OSError, ValueError, KeyError, TypeError):
        size = None
    if size is None:
        seen = f"{free / _GIB:.1f} GiB free; the model's need is known when it is here"
        yield Finding.skipped("memory", seen)
        return
    yield _fits(chosen, size, free)


def _fits(chosen: WorkerSettings, size: ModelSize, free: int) -> Finding:
    kv_bytes = _kv_bytes(chosen, size, free - size.weight_bytes)
    context = min(chosen.max_model_len or size.max_model_len, size.max_model_len)
    num_tokens = kv_bytes // size.kv_bytes_per_token
    seen = (
        f"{free / _GIB:.1f} GiB free, {size.weight_bytes / _GIB:.2f} for weights, {kv_bytes / _GIB:.2f} for "
        f"{num_tokens:,} tokens of KV cache"
    )
    if size.weight_bytes + kv_bytes > free:
        return Finding.wrong("memory", seen, "free some, set PAGEFLEET_KV_MEMORY, or take less of a model")
    if num_tokens < context:
        seen += f": less than one context of {context:,}"
        return Finding.warning("memory", seen, "lower PAGEFLEET_MAX_MODEL_LEN, or free some")
    return Finding.ok("memory", seen)


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
    seen = f"{free / _GIB:.1f} GiB free in {folder}, up to {needed / _GIB:.1f} needed"
    if not os.access(existing, os.W_OK):
        mend = "PAGEFLEET_CACHE_DIR=<a folder of yours>"
        return Finding.wrong("model cache", f"{folder} may not be written", mend)
    if free < needed:
        return Finding.wrong("model cache", seen, "free some, or set PAGEFLEET_CACHE_DIR to a larger disk")
    return Finding.ok("model cache", seen)
