"""From a configuration to a model that is ready: find, read, pack, size the KV cache, warm up.

Light to import: torch and all that needs it come in with `load`, which says what they cost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.errors import ConfigError, ModelLoadError
from pagefleet.engine.executor import Fingerprint, LoadedModel, ModelInfo, Report

if TYPE_CHECKING:
    import torch

    from pagefleet.engine.backends.base import Backend
    from pagefleet.engine.models.decoder import Decoder

CPU_MEMORY_SHARE = 0.25
"""Of the memory that is available: a CPU is shared with other processes."""
DEVICE_MEMORY_SHARE = 0.85
"""Of the memory that is free: an accelerator is taken as the worker's own."""


def load(config: EngineConfig, report: Report | None = None) -> LoadedModel:
    """Loads the model that `config` names; `report` is told of each stage as it ends.

    Raises ModelLoadError and its subclasses, MissingDependencyError, and ConfigError where the
    configuration asks for what this machine hasn't got.
    """
    stages = _Stages(report)
    with stages.time("import"):
        import torch

        from pagefleet.engine.backends.reference import ReferenceBackend
        from pagefleet.engine.checkpoint import resolve
        from pagefleet.engine.hf_tokenizer import HFTokenizer
        from pagefleet.engine.model_runner import ModelRunner
        from pagefleet.engine.models.registry import check_supported, load_model
        from pagefleet.engine.weights import WeightReader, fingerprint_tokenizer, fingerprint_weights
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with stages.time("resolve"):
        checkpoint = resolve(config.model, config.cache_dir)
        check_supported(checkpoint.config)
    device = _device(config.device)
    dtype = _dtype(config.dtype, checkpoint.config, device)
    with stages.time("tokenizer"):
        tokenizer = HFTokenizer(checkpoint.tokenizer_folder)
    with stages.time("weights"), torch.inference_mode():
        backend = ReferenceBackend(device, dtype)
        model = load_model(checkpoint.config, WeightReader(checkpoint.folder), backend)
    with stages.time("fingerprint"):
        fingerprint = Fingerprint(
            weights=fingerprint_weights(checkpoint.folder),
            tokenizer=fingerprint_tokenizer(checkpoint.tokenizer_folder),
            dtype=str(dtype).removeprefix("torch."),
            backend=config.backend,
            version=version("pagefleet"),
        )
    max_model_len = min(config.max_model_len or model.config.max_model_len, model.config.max_model_len)
    with stages.time("kv_cache"), torch.inference_mode():
        num_blocks = _num_blocks(config, model, backend, max_model_len)
        backend.allocate_kv_cache(model.attention, num_blocks, config.block_size)
    runner = ModelRunner(model, backend)
    with stages.time("warm_up"):
        _warm_up(runner, config)
    info = ModelInfo(
        name=checkpoint.name,
        max_model_len=max_model_len,
        vocab_size=model.config.vocab_size,
        eos_token_ids=_eos_token_ids(checkpoint.folder, checkpoint.config),
        block_size=config.block_size,
        num_blocks=num_blocks,
        fingerprint=fingerprint,
    )
    return LoadedModel(executor=runner, tokenizer=tokenizer, info=info)


class _Stages:
    def __init__(self, report: Report | None) -> None:
        self._report = report

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._report is not None:
            self._report(name, time.perf_counter() - start)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        # An index or a driver that isn't there shows itself here.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"The device {name!r} is not available here: {error}") from error
    return device


def _dtype(name: str, config: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """ "auto" is the checkpoint's own; float16 becomes bfloat16 on a CPU, which rarely computes in it."""
    import torch

    from pagefleet.engine.models.config import checkpoint_dtype

    if name == "auto":
        dtype = checkpoint_dtype(config)
        return torch.bfloat16 if dtype == torch.float16 and device.type == "cpu" else dtype
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _num_blocks(config: EngineConfig, model: Decoder, backend: Backend[Any, Any], max_model_len: int) -> int:
    """As configured; else what fits the memory, but no more than `max_num_seqs` full contexts can use."""
    if config.num_blocks is not None:
        return config.num_blocks
    bytes_per_block = backend.kv_bytes_per_block(model.attention, config.block_size)
    most = config.max_num_seqs * -(-max_model_len // config.block_size)
    if config.kv_memory_bytes is not None:
        num_blocks = config.kv_memory_bytes // bytes_per_block
    else:
        num_blocks = min(_memory_to_use(backend.device) // bytes_per_block, most)
    if num_blocks < 1:
        raise ModelLoadError(
            f"One block of the KV cache takes {bytes_per_block:,} bytes, and there is less; "
            "free memory or set kv_memory_bytes."
        )
    return num_blocks


def _memory_to_use(device: torch.device) -> int:
    import psutil
    import torch

    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free * DEVICE_MEMORY_SHARE)
    return int(psutil.virtual_memory().available * CPU_MEMORY_SHARE)


def _warm_up(runner: Any, config: EngineConfig) -> None:
    """The shapes that matter: one sequence, a full batch, a short prompt, a full budget of prompt."""
    runner.warm_up([1])
    runner.warm_up([1] * min(config.max_num_seqs, config.max_num_batched_tokens))
    runner.warm_up([min(config.block_size, config.max_num_batched_tokens)])
    runner.warm_up([config.max_num_batched_tokens])


def _eos_token_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """generation_config.json knows the chat model's ends of turn; config.json often only the base model's."""
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)
