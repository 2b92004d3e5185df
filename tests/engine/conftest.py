"""Session fixtures: the real SmolLM2, tiny random checkpoints, and what transformers makes of them.

Whatever is slow to compute is computed once: a test that needs a reference shares it with the others.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pagefleet.engine.backends.cpu.native import Library
from pagefleet.engine.config import EngineConfig
from pagefleet.engine.execution.executor import LoadedModel
from pagefleet.engine.llm_engine import LLMEngine
from pagefleet.engine.model_info import Fingerprint, ModelInfo
from pagefleet.engine.text.tokenizer import ByteTokenizer

# Tests import their helpers from this folder.
sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[2]
SMOLLM2 = "smollm2-135m-instruct"

_TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY_CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-tied-biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-linear-rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 4.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": 12, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
}


@pytest.fixture(scope="session")
def kernels() -> Library:
    """The C++ library of the CPU backend, compiled again if its sources have changed."""
    from cpu_kernels import KERNELS_VARIABLE

    from pagefleet.engine.backends.cpu.native import Library, load_library

    if path := os.environ.get(KERNELS_VARIABLE):
        return Library(Path(path))
    (ROOT / "build").mkdir(exist_ok=True)
    with FileLock(ROOT / "build" / "kernels.lock"):
        _compile_kernels()
    library = load_library()
    assert library is not None, "there is no C++ compiler"
    return library


def _compile_kernels() -> None:
    from pagefleet.engine.backends.cpu.native import find_library

    sources = (ROOT / "engine" / "backends" / "cpu" / "kernels").glob("*.?pp")
    compiled = find_library()
    if compiled is None or compiled.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        importlib.invalidate_caches()


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory, transformers: Any) -> dict[str, Path]:
    """One random float32 checkpoint for each of TINY_CHECKPOINTS, biases and norms random as well."""
    folders = {name: tmp_path_factory.mktemp(name) for name in TINY_CHECKPOINTS}
    for name, (family, options) in TINY_CHECKPOINTS.items():
        _save_random(transformers, family, options, folders[name])
    return folders


def _save_random(transformers: Any, family: str, options: dict[str, Any], folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(_TINY | options))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        # Freshly made, norms are all 1 and biases all 0: a decoder that left them out would pass.
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The real SmolLM2-135M-Instruct, converted from its GGUF file unless an earlier run has done so."""
    from pagefleet.engine.loading.checkpoint import resolve

    return resolve(SMOLLM2).folder


@pytest.fixture(scope="session")
def smollm2_float32(smollm2_folder: Path) -> LoadedModel:
    return _loaded(dtype="float32", num_blocks=512)


@pytest.fixture(scope="session")
def smollm2_float64(smollm2_folder: Path) -> LoadedModel:
    return _loaded(dtype="float64", num_blocks=256)


def _loaded(**options: Any) -> LoadedModel:
    from pagefleet.engine.loading import loader

    return loader.load(EngineConfig(model=SMOLLM2, max_num_batched_tokens=128, **options))


@pytest.fixture(scope="session")
def engine_with() -> Callable[..., LLMEngine]:
    """Makes new engines, their books empty, around a model that other tests use too."""
    return _engine_with


def _engine_with(loaded: LoadedModel, *, num_blocks: int | None = None, **options: Any) -> LLMEngine:
    info = replace(loaded.info, num_blocks=num_blocks or loaded.info.num_blocks)
    return LLMEngine(replace(loaded, info=info), EngineConfig(model=SMOLLM2, **options))


@pytest.fixture(scope="session")
def transformers() -> Any:
    """The library, its warnings and progress bars off: they are about its own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="session")
def tiny(tiny_checkpoints: dict[str, Path]) -> LoadedModel:
    """A small model in float64, where a token never depends on rounding: 64 blocks of 4."""
    return _in_float64(tiny_checkpoints["llama"])


@pytest.fixture(scope="session")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory, transformers: Any) -> LoadedModel:
    """The same with ByteTokenizer's vocabulary: it can be held to a grammar."""
    folder = tmp_path_factory.mktemp("bytes")
    tokens = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": ByteTokenizer.EOS_TOKEN_ID}
    _save_random(transformers, "Llama", tokens, folder)
    return _in_float64(folder)


def _in_float64(folder: Path) -> LoadedModel:
    import torch

    from pagefleet.engine.execution.model_runner import ModelRunner
    from pagefleet.engine.models.model_source import ModelSource

    config = json.loads((folder / "config.json").read_text())
    ends = (config["eos_token_id"],)
    runner = ModelRunner(ModelSource(folder, config, torch.device("cpu"), torch.float64), ends)
    runner.allocate_kv_cache([64] * len(runner.spec.kv_windows), 4)
    fingerprint = Fingerprint("tiny", "bytes", "float64", "reference", "0")
    info = ModelInfo("tiny", 256, config["vocab_size"], ends, 4, 64, fingerprint)
    return LoadedModel(runner, ByteTokenizer(), info)
