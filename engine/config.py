"""EngineConfig: the validated configuration of one engine. Reads no files and no environment variables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pagefleet.engine.errors import ConfigError

__all__ = ["BACKENDS", "DTYPES", "EngineConfig", "NullOptions"]

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")
BACKENDS = ("reference", "cpu", "null")

MIN_NULL_VOCAB_SIZE = 259
"""The byte tokenizer has 256 bytes and 3 special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NullOptions:
    """The model that the null backend imitates."""

    step_time_s: float = 0.02
    """Seconds that every step takes. 0: as fast as the host allows."""
    token_time_s: float = 0.0
    """Seconds that each token adds to its step, to imitate a device with slow prefill."""
    weights: str = "null"
    """The `weights` of its fingerprint."""
    version: str | None = None
    """The `version` of its fingerprint. None: the installed version of pagefleet."""
    vocab_size: int = MIN_NULL_VOCAB_SIZE
    max_model_len: int = 4096
    num_blocks: int = 4096
    kv_windows: tuple[int | None, ...] = (None,)
    """The windows of its KV groups, in tokens; None for a group without a window."""
    period: int | None = None
    """Its outputs repeat after this many tokens. None: they do not repeat."""
    recites: bool = False
    """If a prompt contains `<recite>`, generate the text between its last `<recite>` and `</recite>`."""
    faults: bool = False
    """Fail every step that contains a prompt with `<fault step>`; lose the device at `<fault device>`."""

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
        for window in self.kv_windows:
            if window is not None:
                _require_positive("null.kv_windows", window)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The configuration of one engine: its model, its device and its limits.

    Raises ConfigError (a ValueError) if a field has an invalid value.
    """

    model: str
    """A folder, a GGUF file, the id of a model on the Hugging Face hub, or an alias."""
    revision: str | None = None
    """The branch, tag or commit of a model on the hub. None: the default branch."""
    dtype: str = "auto"
    """One of `DTYPES`. "auto": the dtype of the checkpoint, but bfloat16 instead of float16 on a CPU."""
    device: str = "cpu"
    """A torch device, such as "cpu" or "cuda:0"."""
    backend: str = "reference"
    """One of `BACKENDS`. "cpu": kernels in C++, on CPUs only."""
    block_size: int = 16
    """Tokens per block of the KV cache."""
    num_blocks: int | None = None
    """Blocks of the KV cache. None: as many as fit `kv_memory_bytes`, or a share of the free memory."""
    kv_memory_bytes: int | None = None
    """Memory for the KV cache, in bytes. None: a share of the free memory."""
    max_num_seqs: int = 64
    """The largest number of sequences in the batch."""
    max_num_batched_tokens: int | None = None
    """The largest number of tokens in one step. None: as many as `max_step_s` allows at the speed measured
    during warm-up, or 512 without `max_step_s`."""
    max_step_s: float | None = None
    """The time that a step should take at most, in seconds: the token budget adapts to it. None: no limit."""
    overlap_steps: bool | None = None
    """Whether a step is scheduled while the one before is computed. None: on an accelerator, not on a CPU,
    whose cores the step itself needs."""
    max_model_len: int | None = None
    """The largest number of tokens of prompt and output. None: the model's context length."""
    enable_prefix_caching: bool = True
    use_generation_config: bool = True
    """Whether generation_config.json provides the defaults of sampling parameters."""
    num_speculative_tokens: int = 8
    """The largest number of speculative tokens per sequence and step. 0: no speculative decoding."""
    num_threads: int | None = None
    """Threads of torch's CPU kernels. None: torch's default."""
    chat_template: Path | str | None = None
    """A file with a Jinja template that replaces the checkpoint's. None: the checkpoint's own."""
    trace_file: Path | None = None
    """The file that the trace of the first `trace_steps` steps is written to, for Perfetto."""
    trace_steps: int = 0
    cache_dir: Path | None = None
    """The folder of converted checkpoints. None: ~/.cache/pagefleet."""
    null: NullOptions = field(default_factory=NullOptions)

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model must not be empty: give a folder, a GGUF file, a hub id or an alias.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}.")
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}.")
        if not self.device:
            raise ConfigError("device must not be empty: give a device such as cpu or cuda:0.")
        if self.chat_template is not None and self.backend == "null":
            raise ConfigError("chat_template has no effect on the null backend; remove it.")
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
