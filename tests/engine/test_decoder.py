"""The decoder's precision, and what it refuses. families/ has the comparisons with transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pagefleet.engine.backends.base import RaggedBatch
from pagefleet.engine.backends.reference import ReferenceBackend
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.weight_reader import WeightReader
from pagefleet.engine.loading.fingerprint import fingerprint_weights
from pagefleet.engine.models.decoder import Decoder
from pagefleet.engine.models.registry import load_model, read_spec

BLOCK_SIZE = 4
LENGTHS = (60, 1, 17)
PROMPTS = [
    torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(length)) for length in LENGTHS
]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def load_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    backend = ReferenceBackend(torch.device("cpu"), dtype)
    model = load_model(read_json(folder / "config.json"), folder, backend)
    backend.allocate_kv_cache(model.spec, [64] * len(model.spec.kv_windows), BLOCK_SIZE)
    return model


@torch.inference_mode()
def logits_of(model: Decoder, chunk_sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """Logits of every token of PROMPTS, computed side by side in chunks of these sizes (the last repeats)."""
    logits: list[list[torch.Tensor]] = [[] for _ in PROMPTS]
    tables = np.arange(1, 1 + 3 * 15)[::-1].reshape(3, 15)
    done, sizes = [0] * len(PROMPTS), list(chunk_sizes)
    while True:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        lens = [min(size, len(prompt) - d) for prompt, d in zip(PROMPTS, done, strict=True)]
        active = [i for i, n in enumerate(lens) if n > 0]
        if not active:
            return [torch.cat(parts) for parts in logits]
        tokens = torch.cat([PROMPTS[i][done[i] : done[i] + lens[i]] for i in active])
        batch = RaggedBatch(
            tokens.numpy(), np.array(lens)[active], np.array(done)[active], tables[None, active]
        )
        output = model.logits(model.forward(model.backend.begin_step(batch), torch.arange(len(tokens))))
        for i, part in zip(active, output.split([lens[i] for i in active]), strict=True):
            logits[i].append(part)
            done[i] += lens[i]


def test_float64_is_float64_throughout(tiny_checkpoints):
    """Given one checkpoint in two ways of chunking, float64 logits agree far beyond float32's reach."""
    model = load_decoder(tiny_checkpoints["qwen3"], torch.float64)
    for whole, pieces in zip(logits_of(model, (64,)), logits_of(model, (5, 1)), strict=True):
        torch.testing.assert_close(whole, pieces, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"architectures": ["UnknownForCausalLM"], "model_type": "unknown"},
            "UnknownForCausalLM.* does not know model_type",
        ),
        ({"architectures": ["MambaForCausalLM"]}, "model_type 'llama' has the architecture LlamaForCausalLM"),
        ({"architectures": None, "model_type": "bert"}, "bert"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported, only gelu, "),
        ({"rope_parameters": {"rope_type": "spiral"}}, "RoPE scaling 'spiral' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}, "rope_parameters": None}, "has no 'factor'"),
        ({"dtype": "int8"}, "int8"),
        ({"vocab_size": 96}, "different models"),
        ({"num_hidden_layers": 4}, "model.layers.3"),
        ({"architectures": 5}, "architectures must be a list of names"),
        ({"architectures": [7]}, "architectures must be a list of names"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, not 0"),
        ({"head_dim": -8}, "head_dim must be at least 1, not -8"),
        ({"hidden_size": "wide"}, "hidden_size must be an integer, not 'wide'"),
        ({"max_position_embeddings": None}, "has no 'max_position_embeddings'"),
        ({"num_hidden_layers": 2}, "feature that is not supported"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused_in_a_sentence(tiny_checkpoints, change, sentence):
    folder = tiny_checkpoints["llama"]
    config = read_json(folder / "config.json") | change
    with pytest.raises(ModelLoadError, match=sentence):
        load_model(config, folder, ReferenceBackend(torch.device("cpu"), torch.float32))


def test_a_config_without_a_needed_field_is_refused(tiny_checkpoints):
    config = read_json(tiny_checkpoints["llama"] / "config.json")
    del config["intermediate_size"]
    with pytest.raises(ModelLoadError, match="intermediate_size"):
        read_spec(config)


def test_rope_is_read_in_both_spellings(tiny_checkpoints):
    """transformers 5 writes rope_parameters; most checkpoints on the hub are older."""
    new = read_json(tiny_checkpoints["llama-linear-rope"] / "config.json")
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    old |= {"rope_theta": 5e3, "rope_scaling": {"type": "linear", "factor": 4.0}}
    new_rope, old_rope = (read_spec(config).layers[0].attention.rope for config in (new, old))
    assert new_rope is not None
    assert old_rope is not None
    assert torch.equal(new_rope.inv_freq, old_rope.inv_freq)


def test_fingerprints_tell_weights_apart(tiny_checkpoints, tmp_path):
    """Given a copy, the fingerprint is the same; given one changed weight in a small file, it is not."""
    source = tiny_checkpoints["llama"] / "model.safetensors"
    shutil.copy(source, tmp_path)
    assert fingerprint_weights(tmp_path) == fingerprint_weights(source.parent)
    weights = load_file(source)
    weights["model.norm.weight"][5] += 1e-3
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint_weights(tmp_path) != fingerprint_weights(source.parent)


def test_a_file_that_is_cut_off_is_refused(tiny_checkpoints, tmp_path):
    content = (tiny_checkpoints["llama"] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelLoadError, match="download the model again"):
        WeightReader(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    with pytest.raises(ModelLoadError, match=r"model-2\.safetensors"):
        WeightReader(tmp_path)


# -- which files, and what must be in them ---------------------------------------------------------------


def test_the_files_that_transformers_would_take_are_read(tiny_checkpoints, tmp_path, caplog):
    """model.safetensors goes before an index, an index before anything else; what is not read is named."""
    source = tiny_checkpoints["llama"] / "model.safetensors"
    right = fingerprint_weights(source.parent)
    shutil.copy(source, tmp_path / "model_new.safetensors")
    assert fingerprint_weights(tmp_path) == right, "the only one"
    shutil.copy(source, tmp_path / "model.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(source).items()}
    save_file(zeros, tmp_path / "model_new.safetensors", metadata={"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model_new.safetensors"}}')
    assert fingerprint_weights(tmp_path) == right
    norm = WeightReader(tmp_path).take("model.norm.weight")
    assert torch.equal(norm, load_file(source)["model.norm.weight"])
    assert "model_new.safetensors is ignored, because the weights are in model.safetensors" in caplog.text
    (tmp_path / "model.safetensors").unlink()
    assert fingerprint_weights(tmp_path) != right


def test_several_files_without_an_index_are_refused(tiny_checkpoints, tmp_path):
    for name in ("a", "b"):
        shutil.copy(tiny_checkpoints["llama"] / "model.safetensors", tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelLoadError, match=r"several weight files \(a\.safetensors, b\.safetensors\)"):
        WeightReader(tmp_path)


@pytest.mark.parametrize(
    ("checkpoint", "missing"),
    [
        ("llama", "lm_head.weight"),
        ("llama", "model.norm.weight"),
        ("llama-tied-biased", "model.layers.1.self_attn.q_proj.bias"),
        ("llama-tied-biased", "model.layers.1.self_attn.o_proj.bias"),
        ("llama-tied-biased", "model.layers.2.mlp.gate_proj.bias"),
        ("qwen2", "model.layers.0.self_attn.q_proj.bias"),
        ("qwen3", "model.layers.2.self_attn.q_norm.weight"),
        ("mistral", "model.layers.2.mlp.down_proj.weight"),
    ],
)
def test_a_tensor_that_is_missing_is_named(tiny_checkpoints, tmp_path, checkpoint, missing):
    """Left out, the model would talk on without it."""
    folder = tiny_checkpoints[checkpoint]
    weights = load_file(folder / "model.safetensors")
    # All of a kind: a first layer without one is taken for a model without them.
    kind = missing.split(".", 3)[-1] if "layers" in missing else missing
    left = {name: tensor for name, tensor in weights.items() if not name.endswith(kind)}
    save_file(left, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = read_json(folder / "config.json")
    with pytest.raises(
        ModelLoadError, match=rf"has no tensor .*{kind}.*\({len(weights) - len(left)} tensors"
    ):
        load_model(config, tmp_path, ReferenceBackend(torch.device("cpu"), torch.float32))


def test_a_tied_embedding_is_stored_once(tiny_checkpoints):
    """If it is converted, the head shares its memory; if not, it is the checkpoint's file, and the head is
    packed."""
    folder = tiny_checkpoints["llama-tied-biased"]
    wide, same = (load_decoder(folder, dtype)._weights for dtype in (torch.float64, torch.float32))
    assert wide.head.weight.data_ptr() == wide.embedding.data_ptr()
    assert same.head.is_prepacked
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps if str(folder) in line[-1]]
    assert any(begin <= same.embedding.data_ptr() < end for begin, end in spans)


def test_the_fingerprint_names_the_frequencies_that_the_context_length_chose():
    """A job that began with the short factors is not continued by a worker with the long ones."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    rope |= {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [1.5, 3.0, 6.0, 8.0]}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "rope_parameters": rope,
    }
    variants = {length: read_spec(config, length).variant for length in (None, 64, 65)}
    assert variants == {None: "longrope-long", 64: "longrope-short", 65: "longrope-long"}
    dynamic = config | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}
    specs = {length: read_spec(dynamic, length) for length in (None, 256, 500, 5000)}
    assert [spec.variant for spec in specs.values()] == [
        "dynamic-none",
        "dynamic-none",
        "dynamic-500",
        "dynamic-1024",
    ]
    assert [spec.max_model_len for spec in specs.values()] == [256, 256, 500, 1024]
