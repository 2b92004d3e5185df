"""The worker's settings: the other one of the two places where the environment is read."""

from __future__ import annotations

import difflib
import os
import socket
import uuid
from pathlib import Path
from typing import Final, Literal

from pydantic import ByteSize, Field

from pagefleet.api.config.settings import CONFIG_VARIABLE, FleetSettings, FlowerSettings

_NO_SETTINGS: Final = frozenset({CONFIG_VARIABLE, "PAGEFLEET_TAG"})
"""Also ours: the file of settings, and the tag of compose's images."""


class WorkerSettings(FleetSettings):
    """One worker process: one model on one set of devices. ``PAGEFLEET_<NAME>`` in the environment."""

    section = "worker"

    model: str = Field(
        "smollm2-135m-instruct", min_length=1, description="a folder, a GGUF file, a hub id or an alias"
    )
    served_name: str | None = Field(None, description="canonical name; by default made from `model`")
    aliases: list[str] = Field(default_factory=list, description="further names that producers may ask for")
    backend: Literal["reference", "null"] = Field(
        "reference", description="what computes; null makes tokens up"
    )
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = Field(
        "auto", description="what is computed in; auto: as the checkpoint and the device like it"
    )
    device: str = Field("cpu", description="cpu or cuda, as torch calls it")
    use_generation_config: bool = Field(
        True,
        description="the checkpoint's generation_config.json gives what a request leaves out",
    )
    num_threads: int | None = Field(None, gt=0, description="by default the host's cores")
    trace_steps: int = Field(0, ge=0, description="so many first steps are written as a trace for Perfetto")
    trace_file: Path | None = Field(None, description="where; by default ./pagefleet-trace-<pid>.json")
    cache_dir: Path | None = Field(None, description="converted checkpoints; by default ~/.cache/pagefleet")

    max_num_seqs: int = Field(64, gt=0, description="sequences in the batch at once")
    max_num_batched_tokens: int | None = Field(
        None, gt=0, description="tokens of one step at most; by default what fits a quarter of `lease_s`"
    )
    speculate: int = Field(
        8, ge=0, description="tokens guessed ahead at most, of each sequence in each step; 0: off"
    )
    max_model_len: int | None = Field(
        None, gt=0, description="tokens of prompt and answer; by default what the model can"
    )
    num_blocks: int | None = Field(
        None, gt=0, description="blocks of 16 tokens in the KV cache; by default what memory allows"
    )
    kv_memory: ByteSize | None = Field(
        None, gt=0, description="the KV cache's size in place of num_blocks: bytes, or as in 2GiB"
    )
    tool_parser: Literal["auto", "hermes", "llama3", "mistral", "json"] = Field(
        "auto",
        description="how the model writes calls of tools; auto: as its chat template shows; json: the "
        "template knows no tools, a system message tells it of them",
    )
    reasoning_parser: Literal["auto", "think", "none"] = Field(
        "auto",
        description="think: what stands in <think> tags is no answer; auto: as its chat template shows",
    )
    null_step_time_s: float = Field(0.02, ge=0, description="backend null: how long a step lasts")

    null_token_time_s: float = Field(0.0, ge=0, description="backend null: how long a token adds to a step")
    null_period: int | None = Field(
        None, gt=0, description="backend null: its answers repeat themselves after so many tokens"
    )
    null_recites: bool = Field(
        False,
        description="backend null: where a prompt has <recite>, its answer is what stands between the last "
        "one and </recite>",
    )
    null_faults: bool = Field(
        False,
        description="backend null: a prompt with <fault step> fails every step that it is in, one with "
        "<fault device> loses the device",
    )
    null_weights: str = Field("null", description="backend null: which weights it pretends to have")
    null_version: str | None = Field(None, description="backend null: which version it pretends to be")

    lease_s: float = Field(3.0, gt=0, description="after this long without a beat a worker counts as dead")
    lease_file: Path | None = Field(
        None, description="touched with each beat, dated to the lease's end: what a health check can look at"
    )
    drain_s: float = Field(20.0, ge=0, description="what running sequences get to finish on SIGTERM")
    max_queue_depth: int = Field(10_000, gt=0, description="open jobs of one lane before QueueFull")
    max_tenant_depth: int = Field(
        10_000, gt=0, description="choices in the open jobs of one tenant in a lane"
    )
    max_tenant_bytes: int | None = Field(
        None, gt=0, description="of one tenant's requests and results on the server; None is no limit"
    )
    max_result_ttl_s: int = Field(
        7 * 86400, gt=0, description="the longest result_ttl_s that a request may ask for"
    )
    host_name: str | None = Field(
        None, pattern=r"^[\w.-]{1,63}$", description="this machine in workers' names; by default its own name"
    )
    debug_wedge: bool = Field(False, description="SIGUSR2 wedges the engine: for the chaos suite")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="for Prometheus; 0 takes a free one, None is off"
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="where metrics_port listens")
    log_format: Literal["plain", "json"] = Field("plain", description="json: one object a line")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="how much the worker says; never a prompt or an answer"
    )

    @classmethod
    def unknown_variables(cls) -> list[tuple[str, str | None]]:
        """The PAGEFLEET_* variables that no setting is called, each with the setting that is nearest to it.
        Nothing refuses them: compose and the tests have some of their own."""
        known = {f"PAGEFLEET_{name.upper()}" for name in (*cls.model_fields, *FlowerSettings.model_fields)}
        given = [name for name in os.environ if name.startswith("PAGEFLEET_")]
        return [
            (name, next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.8)), None))
            for name in sorted(given)
            if name not in known and name not in _NO_SETTINGS
        ]

    @property
    def name(self) -> str:
        """The model's canonical name: what producers ask for and queues are called after."""
        return self.served_name or Path(self.model).name.removesuffix(".gguf").lower()


def thread_variables() -> dict[str, str | None]:
    """What the environment tells OpenMP, as the user set it."""
    return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}


def let_threads_sleep() -> None:
    """Makes OpenMP's threads sleep, not spin, where they wait for each other. Before torch is imported.

    A worker shares its cores with Redis, clients and other workers. A spinning thread holds the core that
    the thread it waits for needs: measured, one busy neighbour on two cores makes a linear layer 20 times
    slower (ops/decisions/0003-omp-wait-policy.md). A value set by the user stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def new_worker_id(host_name: str | None = None) -> str:
    """Unique for each process start: after a Redis rollback an epoch can come twice, this cannot."""
    return f"{host_name or socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
