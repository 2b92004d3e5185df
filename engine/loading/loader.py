"""Loader of a model: find its files, load tokenizer and weights, warm up, size and allocate the KV cache.

Importing this module is quick: `load` imports torch, as a stage that it reports.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.errors import ConfigError
from pagefleet.engine.execution.executor import LoadedModel, Report
from pagefleet.engine.loading.generation_config import default_sampling, read_generation_config
from pagefleet.engine.model_info import Fingerprint, ModelInfo

if TYPE_CHECKING:
    import torch

    from pagefleet.engine.loading.checkpoint import Checkpoint
    from pagefleet.engine.models.model_source import ModelSource


def load(config: EngineConfig, report: Report | None = None) -> LoadedModel:
    """Load the model of `config`.

    Args:
        report: called after each stage with its name and its seconds.

    Raises ModelLoadError or a subclass, MissingDependencyError, or ConfigError if the device is not
    available or the chat template is not valid.
    """
    stages = _Stages(report)
    with stages.time("import"):
        import torch

        from pagefleet.engine.execution.kv_sizing import fitting_kv_groups
        from pagefleet.engine.execution.model_runner import ModelRunner
        from pagefleet.engine.execution.warm_up import warm_up
        from pagefleet.engine.loading.checkpoint import resolve
        from pagefleet.engine.models.model_source import ModelSource
        from pagefleet.engine.models.registry import check_supported
        from pagefleet.engine.text.chat_template import read_template_file
        from pagefleet.engine.text.end_tokens import end_token_ids
        from pagefleet.engine.text.hf_tokenizer import HFTokenizer
        from pagefleet.engine.text.vocabulary import check_vocabulary
    # A mistake in the template is reported before the model is downloaded.
    template = None if config.chat_template is None else read_template_file(Path(config.chat_template))
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with stages.time("resolve"):
        checkpoint = resolve(config.model, config.cache_dir, config.revision)
        check_supported(checkpoint.config)
    device = _device(config.device)
    dtype = _dtype(config.dtype, checkpoint.config, device)
    with stages.time("tokenizer"):
        tokenizer = HFTokenizer(checkpoint.tokenizer_folder, template)
    generation = read_generation_config(checkpoint.folder)
    eos_token_ids = end_token_ids(generation, checkpoint.config, tokenizer)
    with stages.time("weights"):
        source = ModelSource(
            checkpoint.folder, checkpoint.config, device, dtype, config.max_model_len, config.backend
        )
        runner = ModelRunner(source, eos_token_ids)
        check_vocabulary(tokenizer, runner.spec.vocab_size)
    with stages.time("fingerprint"):
        fingerprint = _fingerprint(checkpoint, template, source, runner.spec.variant, runner.backend_name)
    longest = runner.spec.max_model_len
    max_model_len = min(config.max_model_len or longest, longest)
    with stages.time("warm_up"):
        warmed = warm_up(runner, config, max_model_len)
    with stages.time("kv_cache"):
        groups = fitting_kv_groups(runner, config, max_model_len, warmed)
        runner.allocate_kv_cache([group.num_blocks for group in groups], config.block_size)
    info = ModelInfo(
        name=checkpoint.name,
        max_model_len=max_model_len,
        vocab_size=runner.spec.vocab_size,
        eos_token_ids=eos_token_ids,
        block_size=config.block_size,
        num_blocks=groups[0].num_blocks,
        kv_groups=groups,
        fingerprint=fingerprint,
        default_sampling=default_sampling(generation) if config.use_generation_config else {},
    )
    return LoadedModel(
        executor=runner,
        tokenizer=tokenizer,
        info=info,
        max_num_batched_tokens=warmed.max_num_batched_tokens,
        token_s=warmed.token_s,
        context_weight=runner.spec.context_weight,
    )


def _fingerprint(
    checkpoint: Checkpoint, template: str | None, source: ModelSource, variant: str, backend: str
) -> Fingerprint:
    from pagefleet.engine.loading.fingerprint import fingerprint_tokenizer, fingerprint_weights

    return Fingerprint(
        weights=" ".join(filter(None, [fingerprint_weights(checkpoint.folder), variant])),
        tokenizer=fingerprint_tokenizer(checkpoint.tokenizer_folder, template),
        dtype=str(source.dtype).removeprefix("torch."),
        backend=backend,
        version=version("pagefleet"),
    )


class _Stages:
    """Measures the stages of loading and reports them."""

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
        # This fails if the device index or the driver does not exist.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available on this machine: {error}") from error
    return device


def _dtype(name: str, config: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """Return the dtype to compute in. "auto" is that of the checkpoint, except float16 on a CPU, which is
    slow: bfloat16 replaces it."""
    import torch

    from pagefleet.engine.models.config_reader import checkpoint_dtype

    if name == "auto":
        dtype = checkpoint_dtype(config)
        return torch.bfloat16 if dtype == torch.float16 and device.type == "cpu" else dtype
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
