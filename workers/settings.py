"""Settings of a worker."""

from __future__ import annotations

import difflib
import os
import socket
import uuid
from pathlib import Path
from typing import Final, Literal

from pydantic import ByteSize, Field

from pagefleet.api.chat.reasoning import ReasoningParserName
from pagefleet.api.chat.tool_parsers import ToolParserName
from pagefleet.api.config.layered_settings import CONFIG_VARIABLE
from pagefleet.api.config.settings import FleetSettings, FlowerSettings, GatewaySettings

_OTHER_VARIABLES: Final = frozenset({CONFIG_VARIABLE, "PAGEFLEET_TAG"})
"""Variables with our prefix that are not settings: the settings file, and the image tag in compose.yaml."""


class WorkerSettings(FleetSettings):
    """Settings of one worker process: one model on one set of devices."""

    section = "worker"

    model: str = Field(
        "smollm2-135m-instruct",
        min_length=1,
        description="Model to serve: a checkpoint folder, a GGUF file, a Hugging Face id, or an alias.",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="Branch, tag or commit of a model on the Hugging Face hub. Default: its default branch.",
    )
    served_name: str | None = Field(
        None, description="Name of the model in requests. Default: derived from `model`."
    )
    aliases: list[str] = Field(default_factory=list, description="Further names of the model in requests.")
    backend: Literal["reference", "cpu", "null"] = Field(
        "reference",
        description="Backend that runs the model: reference, for any device; cpu, with kernels in C++; null "
        "generates made-up tokens, for tests.",
    )
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Data type of the computation; auto selects by checkpoint and device."
    )
    device: str = Field("cpu", description="torch device to run on: cpu, cuda, cuda:1, ...")
    use_generation_config: bool = Field(
        True,
        description="Take sampling parameters that a request omits from the checkpoint's "
        "generation_config.json.",
    )
    chat_template: Path | None = Field(
        None,
        description="File with the Jinja template that turns a conversation into a prompt. Default: the "
        "checkpoint's own template.",
    )
    num_threads: int | None = Field(
        None, gt=0, description="Number of CPU threads. Default: the number of cores."
    )
    trace_steps: int = Field(
        0, ge=0, description="Number of first engine steps to record as a Perfetto trace; 0 disables it."
    )
    trace_file: Path | None = Field(
        None, description="File to write the trace to. Default: ./pagefleet-trace-PID.json."
    )
    cache_dir: Path | None = Field(
        None, description="Directory for converted checkpoints. Default: ~/.cache/pagefleet."
    )

    max_num_seqs: int = Field(64, gt=0, description="Maximum number of sequences in a batch.")
    max_num_batched_tokens: int | None = Field(
        None,
        gt=0,
        description="Maximum number of tokens in one step. Default: as many as take a quarter of `lease_s`.",
    )
    overlap_steps: bool | None = Field(
        default=None,
        description="Schedule a step while the previous one is computed. Default: on for accelerators, off "
        "for a CPU, whose cores the step itself needs.",
    )
    speculate: int = Field(
        8,
        ge=0,
        description="Maximum number of speculative tokens per sequence and step; 0 disables speculation.",
    )
    max_model_len: int | None = Field(
        None,
        gt=0,
        description="Maximum context length (prompt and output), in tokens. Default: the model's maximum.",
    )
    num_blocks: int | None = Field(
        None,
        gt=0,
        description="Size of the KV cache in blocks of 16 tokens. Default: a share of the free memory.",
    )
    kv_memory: ByteSize | None = Field(
        None,
        gt=0,
        description="Size of the KV cache in bytes, or as in 2GiB. Ignored if `num_blocks` is set.",
    )
    tool_parser: Literal["auto", ToolParserName] = Field(
        "auto",
        description="Format of the model's tool calls. auto detects it from the chat template; json "
        "describes the tools in a system message, for templates without tools.",
    )
    reasoning_parser: Literal["auto", ReasoningParserName, "none"] = Field(
        "auto",
        description="Format of the model's reasoning. auto detects it from the chat template; think "
        "separates the text in `<think>` tags from the answer.",
    )
    null_step_time_s: float = Field(0.02, ge=0, description="Null backend: duration of a step, in seconds.")
    null_token_time_s: float = Field(
        0.0, ge=0, description="Null backend: time that each token adds to a step, in seconds."
    )
    null_period: int | None = Field(
        None, gt=0, description="Null backend: repeat the output after this number of tokens."
    )
    null_recites: bool = Field(
        False,
        description="Null backend: answer a prompt that contains `<recite>TEXT</recite>` with TEXT.",
    )
    null_faults: bool = Field(
        False,
        description="Null backend: fail each step with a prompt that contains `<fault step>`, and lose the "
        "device on `<fault device>`.",
    )
    null_weights: str = Field("null", description="Null backend: weights to report in the fingerprint.")
    null_version: str | None = Field(
        None, description="Null backend: pagefleet version to report in the fingerprint."
    )

    lease_s: float = Field(
        3.0,
        gt=0,
        description="Duration of the worker's lease, in seconds. Without a heartbeat for this time "
        "the worker counts as dead.",
    )
    lease_file: Path | None = Field(
        None,
        description="File to touch with each heartbeat, for health checks. Its modification time is the end "
        "of the lease.",
    )
    drain_s: float = Field(
        20.0,
        ge=0,
        description="Time that running sequences have to finish after SIGTERM or Ctrl-C, in seconds.",
    )
    max_queue_depth: int = Field(
        10_000, gt=0, description="Maximum number of open jobs in one lane; further ones get QueueFull."
    )
    max_tenant_depth: int = Field(
        10_000,
        gt=0,
        description="Maximum number of choices in the open jobs of one tenant in one lane; further ones get "
        "QueueFull.",
    )
    max_tenant_bytes: int | None = Field(
        None,
        gt=0,
        description="Maximum size of the requests and results of one tenant in Redis, in bytes. Default: no "
        "limit.",
    )
    max_result_ttl_s: int = Field(
        7 * 86400, gt=0, description="Maximum `result_ttl_s` that a request may ask for, in seconds."
    )
    host_name: str | None = Field(
        None,
        pattern=r"^[\w.-]{1,63}$",
        description="Name of this host in worker ids. Default: the name of the machine.",
    )
    debug_wedge: bool = Field(False, description="Hang the engine on SIGUSR2, for the chaos tests.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="TCP port of the Prometheus metrics; 0 selects a free port. Default: no metrics.",
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Address of the Prometheus metrics.")
    log_format: Literal["plain", "json"] = Field(
        "plain", description="Log format; json writes one object per line."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Log level. Prompts and outputs are never logged."
    )

    @classmethod
    def unknown_variables(cls) -> list[tuple[str, str | None]]:
        """Return the PAGEFLEET_* variables that are not settings, each with the most similar setting or None.

        They are not an error: compose and the tests define some too.
        """
        fields = (*cls.model_fields, *FlowerSettings.model_fields, *GatewaySettings.model_fields)
        known = {f"PAGEFLEET_{name.upper()}" for name in fields}
        given = [name for name in os.environ if name.startswith("PAGEFLEET_")]
        return [
            (name, next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.8)), None))
            for name in sorted(given)
            if name not in known and name not in _OTHER_VARIABLES
        ]

    @property
    def name(self) -> str:
        """The model's canonical name. Requests refer to it, and its queues are named after it."""
        return self.served_name or Path(self.model).name.removesuffix(".gguf").lower()


def thread_variables() -> dict[str, str | None]:
    """Return the OpenMP variables of the environment; None for one that is not set."""
    return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}


def let_threads_sleep() -> None:
    """Make OpenMP threads sleep while they wait for each other, unless the user set a policy.

    Call it before torch is imported. A worker shares its cores with Redis, clients and other workers. A
    spinning thread occupies the core that the thread it waits for needs: one busy process on two cores makes
    a linear layer 20 times slower (ops/decisions/0003-omp-wait-policy.md).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def new_worker_id(host_name: str | None = None) -> str:
    """Return an id that is unique to this process start. After a rollback of Redis an epoch can repeat."""
    return f"{host_name or socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
