"""The configuration of one engine: a value, validated, read from nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pagefleet.engine.errors import ConfigError

__all__ = ["BACKENDS", "DTYPES", "EngineConfig", "NullOptions"]

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")
BACKENDS = ("reference", "null")

MIN_NULL_VOCAB_SIZE = 259
"""The byte tokenizer's 256 bytes and 3 special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NullOptions:
    """The model that the null backend pretends to be."""

    step_time_s: float = 0.02
    """Seconds that a step lasts, whatever is in it. 0: as fast as the host goes."""
    token_time_s: float = 0.0
    """Seconds that each token adds to its step: a device that is slow at prefill."""
    weights: str = "null"
    """What its fingerprint says of its weights."""
    version: str | None = None
    """What its fingerprint says of its version; None: this one."""
    vocab_size: int = MIN_NULL_VOCAB_SIZE
    max_model_len: int = 4096
    num_blocks: int = 4096
    period: int | None = None
    """Its answers repeat themselves after so many tokens. None: never."""
    recites: bool = False
    """Where a prompt has `<recite>`, the answer is what stands between the last one and `</recite>`."""
    faults: bool = False
    """A prompt with `<fault step>` makes every step that it is in fail; `<fault device>` loses the device."""

    def __post_init__(self) -> None:
        if self.period is not None:
            _require_positive("null.period", self.period)
        if not 0 <= self.step_time_s < float("inf"):
            raise ConfigError(f"null.step_time_s must be a number of seconds >= 0, not {self.step_time_s}.")
        if not 0 <= self.token_time_s < float("inf"):
            raise ConfigError(f"null.token_time_s must be a number of seconds >= 0, not {self.token_time_s}.")
        if self.vocab_size < MIN_NULL_VOCAB_SIZE:
            raise ConfigError(f"null.vocab_size must be >= {MIN_NULL_VOCAB_SIZE}, not {self.vocab_size}.")
        _require_positive("null.max_model_len", self.max_model_len)
        _require_positive("null.num_blocks", self.num_blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Which model an engine serves, on what, and how much it takes on at once.

    Raises ConfigError (a ValueError) where a field can't be.
    """

    model: str
    """A folder, a GGUF file, a hub id or an alias."""
    dtype: str = "auto"
    device: str = "cpu"
    backend: str = "reference"
    block_size: int = 16
    """Tokens in a block of the KV cache."""
    num_blocks: int | None = None
    """None: from `kv_memory_bytes`, else a share of the memory that is free."""
    kv_memory_bytes: int | None = None
    max_num_seqs: int = 64
    """Sequences in the batch at once."""
    max_num_batched_tokens: int | None = None
    """Tokens in one step at most. None: as many as `max_step_s` allows at the rate of the warm-up, 512 if
    there is no `max_step_s`."""
    max_step_s: float | None = None
    """Seconds that a step should last at most: the token budget adapts to it. None: the budget stays."""
    max_model_len: int | None = None
    """Caps the model's own context; None leaves it."""
    enable_prefix_caching: bool = True
    use_generation_config: bool = True
    """Whether generation_config.json's sampling parameters stand where a request says nothing."""
    num_speculative_tokens: int = 8
    """Tokens that are guessed ahead at most, of each sequence in each step. 0: none."""
    num_threads: int | None = None
    trace_file: Path | None = None
    """Where the first `trace_steps` steps are written to, for Perfetto."""
    trace_steps: int = 0
    cache_dir: Path | None = None
    """Where converted checkpoints are kept. None: ~/.cache/pagefleet."""
    null: NullOptions = field(default_factory=NullOptions)

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model must name a folder, a GGUF file, a hub id or an alias.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}.")
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}.")
        if not self.device:
            raise ConfigError("device must name a device, such as cpu or cuda:0.")
        for name in ("block_size", "max_num_seqs"):
            _require_positive(name, getattr(self, name))
        if isinstance(self.num_speculative_tokens, bool) or self.num_speculative_tokens < 0:
            raise ConfigError(
                f"num_speculative_tokens must be an integer >= 0, not {self.num_speculative_tokens!r}."
            )
        if self.max_step_s is not None and not 0 < self.max_step_s < float("inf"):
            raise ConfigError(f"max_step_s must be a number of seconds > 0, not {self.max_step_s}.")
        for name in (
            "num_blocks",
            "kv_memory_bytes",
            "max_model_len",
            "max_num_batched_tokens",
            "num_threads",
        ):
            value = getattr(self, name)
            if value is not None:
                _require_positive(name, value)


def _require_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer >= 1, not {value!r}.")
