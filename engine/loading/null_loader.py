"""Loader of the null backend, an engine without a model: for tests and for benchmarks of the code around it.

Scheduling, KV blocks, text and stop conditions are the real ones; only the tokens are made up.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Final

from pagefleet.engine.config import EngineConfig
from pagefleet.engine.execution.executor import LoadedModel, Report
from pagefleet.engine.execution.kv_sizing import kv_groups
from pagefleet.engine.execution.null_executor import NullExecutor
from pagefleet.engine.model_info import Fingerprint, ModelInfo
from pagefleet.engine.text.tokenizer import ByteTokenizer

__all__ = ["load"]

_DEFAULT_NUM_BATCHED_TOKENS: Final = 512


def load(config: EngineConfig, report: Report | None = None) -> LoadedModel:
    """Return the model that `config.null` describes.

    `config.num_blocks` overrides its number of blocks; `config.max_model_len` caps its context.
    """
    started_at = time.monotonic()
    options = config.null
    max_model_len = min(options.max_model_len, config.max_model_len or options.max_model_len)
    default = _DEFAULT_NUM_BATCHED_TOKENS if config.max_step_s is None else max_model_len
    max_num_tokens = config.max_num_batched_tokens or default
    num_blocks = config.num_blocks or options.num_blocks
    info = ModelInfo(
        name=config.model,
        max_model_len=max_model_len,
        vocab_size=options.vocab_size,
        eos_token_ids=(ByteTokenizer.EOS_TOKEN_ID,),
        block_size=config.block_size,
        num_blocks=num_blocks,
        kv_groups=kv_groups(options.kv_windows, num_blocks, config, max_model_len, max_num_tokens),
        fingerprint=Fingerprint(
            weights=options.weights,
            tokenizer="bytes",
            dtype="none",
            backend="null",
            version=options.version or version("pagefleet"),
        ),
    )
    loaded = LoadedModel(
        executor=NullExecutor(options),
        tokenizer=ByteTokenizer(options.vocab_size),
        info=info,
        max_num_batched_tokens=max_num_tokens,
        token_s=options.token_time_s or None,
    )
    if report is not None:
        report("null model", time.monotonic() - started_at)
    return loaded
