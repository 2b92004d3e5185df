"""What a conversion computes, needs and leaves behind: every type of GGML, the memory, a killed process."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import _type_traits, dequantize
from hf_to_gguf import hf_to_gguf
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.header import GGUFTensor, read_gguf_header
from pagefleet.engine.files.gguf.weights import check_gguf_tensors
from pagefleet.engine.files.safetensors_writer import StreamedTensor, write_safetensors
from pagefleet.engine.loading import checkpoint
from pagefleet.engine.loading.checkpoint import resolve
from pagefleet.engine.loading.gguf import conversion, tensors
from pagefleet.engine.loading.model_cache import list_cached

ROWS, COLUMNS = 40, 512
KINDS = [Kind.F32, Kind.F16, *_type_traits]


@pytest.fixture(scope="module")
def source(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose down projections are [ROWS, COLUMNS], which are whole blocks of every type."""
    folder = tmp_path_factory.mktemp("source")
    sizes = {"hidden_size": ROWS, "intermediate_size": COLUMNS, "num_hidden_layers": 2, "vocab_size": 40}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, bos_token_id=0, eos_token_id=0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def random_blocks(kind: Kind) -> np.ndarray:
    """Random bytes as a tensor [ROWS, COLUMNS], without the blocks whose scales are not finite."""
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    count = ROWS * COLUMNS // block_size
    blocks = np.random.default_rng(0).integers(0, 256, (4 * count, block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = dequantize(blocks, kind).reshape(len(blocks), -1)
        valid = blocks[(np.abs(values) < 1e30).all(axis=1)]
    assert len(valid) >= count
    return valid[:count].reshape(ROWS, -1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_is_dequantised_as_gguf_py_does(kind, source, tmp_path, monkeypatch):
    """In slices of two rows, which must not change a value."""
    monkeypatch.setattr(tensors, "_CHUNK_ELEMENTS", 2 * COLUMNS)
    stored = random_blocks(kind)
    data = stored.view({Kind.F32: np.float32, Kind.F16: np.float16}.get(kind, np.uint8))
    names = [f"blk.{layer}.ffn_down.weight" for layer in range(2)]
    hf_to_gguf(source, tmp_path / "m.gguf", "llama", dict.fromkeys(names, (data, kind)))
    assert read_gguf_header(tmp_path / "m.gguf").tensors[names[0]].kind == kind
    folder = resolve(str(tmp_path / "m.gguf"), tmp_path / "cache").folder
    found = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(found, torch.from_numpy(dequantize(stored, kind).copy()))


@pytest.mark.parametrize("kind", [Kind.Q8_1, Kind.Q8_K, Kind.I8, Kind.F64], ids=lambda kind: kind.name)
def test_a_type_that_cannot_be_dequantised_is_named(kind, source, tmp_path):
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    data = np.zeros((ROWS, COLUMNS // block_size * block_bytes), np.uint8)
    hf_to_gguf(source, tmp_path / "m.gguf", "llama", {"blk.1.ffn_down.weight": (data, kind)})
    with pytest.raises(ModelLoadError, match=rf"'blk\.1\.ffn_down\.weight' has the type {kind.name}, which"):
        resolve(str(tmp_path / "m.gguf"), tmp_path / "cache")
    assert list_cached(tmp_path / "cache") == []


def test_a_type_of_tomorrow_is_named_by_its_number(tmp_path):
    with pytest.raises(ModelLoadError, match="has the type 99, which cannot be dequantised"):
        check_gguf_tensors([GGUFTensor("output.weight", (1, 256), 99, tmp_path / "m.gguf", 0)])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_written_file_is_the_one_that_safetensors_writes(dtype, tmp_path):
    """Also values that no dtype holds exactly, and tensors that come in parts. Fingerprints depend on it."""
    values = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * 1e5
    values[0, :4] = np.nan, np.inf, 1 + 2**-9, 1 + 3 * 2**-9
    parts = {
        "model.b": StreamedTensor((6, 5), lambda: iter([values[:4], values[4:]])),
        "model.a.ü": StreamedTensor((5, 6), lambda: iter([values.T])),
    }
    write_safetensors(tmp_path / "streamed", parts, dtype)
    whole = {"model.b": torch.from_numpy(values), "model.a.ü": torch.from_numpy(values.T.copy())}
    save_file({name: each.to(getattr(torch, dtype)) for name, each in whole.items()}, tmp_path / "saved")
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "saved").read_bytes()


def test_a_truncated_file_is_refused_before_it_is_converted(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.truncate((tmp_path / "m.gguf").stat().st_size - 4096)
    with pytest.raises(ModelLoadError, match=r"m\.gguf is truncated: tensor '.*' ends at byte"):
        resolve(str(tmp_path / "m.gguf"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists(), "it is not even hashed"


def test_a_tensor_that_the_architecture_does_not_have_is_named(source, tmp_path):
    hf_to_gguf(source, tmp_path / "m.gguf", "qwen3")
    with pytest.raises(ModelLoadError, match=r"missing \(4\): blk\.0\.attn_q_norm\.weight"):
        resolve(str(tmp_path / "m.gguf"), tmp_path / "cache")


def test_a_conversion_needs_space_on_the_disk(tmp_path, monkeypatch):
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(conversion, "_RESERVE_BYTES", 1 << 60)
    with pytest.raises(ModelLoadError, match=r"needs \d+\.\d GB .*, but the disk has"):
        resolve(str(tmp_path / "m.gguf"), tmp_path / "cache")
    assert list_cached(tmp_path / "cache") == []


@pytest.mark.slow
def test_the_demo_model_is_converted_to_the_same_bytes_as_ever(tmp_path):
    """Other weights would give it another fingerprint: its stored jobs would wait forever."""
    alias = checkpoint.ALIASES["smollm2-135m-instruct"]
    folder = resolve(str(checkpoint._packaged_file(alias)), tmp_path).folder
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "a2c1805b582895d6eac95e8fa8fac84efb7075d1ecde95f2f674ca94ace862cd"


# -- large files -----------------------------------------------------------------------------------------

CONVERT = "import sys; from pathlib import Path; from pagefleet.engine.loading.checkpoint import resolve; "
PEAK = (
    "import resource, pagefleet.engine.models.registry, pagefleet.engine.loading.gguf.conversion; "
    "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024; before = peak(); "
)


def conversion_command(path: Path, cache: Path, before: str = "", after: str = "") -> list[str]:
    code = f"{CONVERT}{before}resolve(sys.argv[1], Path(sys.argv[2])); {after}"
    return [sys.executable, "-c", code, str(path), str(cache)]


@pytest.mark.slow
def test_a_conversion_needs_less_memory_than_its_largest_tensor(tmp_path):
    """The limit is the largest tensor and 1 GB; in fact it does not depend on the size of the tensors."""
    write_gguf(tmp_path / "m.gguf", half="token_embd", num_rows=2**23)
    command = conversion_command(tmp_path / "m.gguf", tmp_path / "cache", PEAK, "print(peak() - before)")
    added = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    [converted] = list_cached(tmp_path / "cache")
    largest = 2**23 * 32 * 2
    assert converted.num_bytes > largest == 512 * 2**20
    assert added < 128 * 2**20, f"{added / 2**20:.0f} MiB"


def has_bytes(partial: Path, count: int) -> bool:
    weights = partial / "model.safetensors"
    return weights.is_file() and weights.stat().st_size >= count


POINTS = {
    "before the first file": lambda partial: True,
    "at the first weights": lambda partial: has_bytes(partial, 1),
    "in the middle of the weights": lambda partial: has_bytes(partial, 2**26),
}


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_a_later_start_takes(tmp_path):
    """Killed at one point after the other, each time the next start begins anew; then one may finish."""
    path, models = tmp_path / "m.gguf", tmp_path / "cache" / "models"
    write_gguf(path, half="token_embd", num_rows=2**21)
    for point, reached in POINTS.items():
        process = subprocess.Popen(conversion_command(path, tmp_path / "cache"))
        deadline = time.monotonic() + 60
        # A glob also sees what the last process left, until this one has cleared it away.
        old = set(models.glob(".partial-*"))
        while not any(reached(each) for each in set(models.glob(".partial-*")) - old):
            assert process.poll() is None, f"ended before it was killed {point}"
            assert time.monotonic() < deadline, point
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, point
        assert list_cached(tmp_path / "cache") == []
        assert len(list(models.iterdir())) == 1, f"{point}: the older remains are gone"
    folder = resolve(str(path), tmp_path / "cache").folder
    assert list(models.iterdir()) == [folder]
    assert load_file(folder / "model.safetensors")["model.embed_tokens.weight"].shape == (2**21, 32)
