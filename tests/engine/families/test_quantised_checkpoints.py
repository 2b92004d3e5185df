"""Checkpoints with quantised linear layers: equal to transformers with the weights that numpy dequantises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checks import compare
from family_harness import BLOCK_SIZE, NUM_SEEDS, Oracle, make_config, make_model, save
from quantised_formats import FORMATS, Layer, compressed, mxfp4
from safetensors.torch import load_file, save_file

from pagefleet.engine import EngineConfig, LLMEngine
from pagefleet.engine.loading.loader import load
from pagefleet.engine.models.registry import find_family

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
PROMPTS = [[7, 1, 9, 200, 33, 41, 5, 5, 90], [3]]
Stored = dict[str, torch.Tensor]
Write = Callable[[np.random.Generator, int, int], Layer]
Quantise = Callable[[torch.nn.Module, np.random.Generator], Stored]
"""Replaces weights of transformers' model with dequantised ones; returns the tensors to store instead."""


def linears(writer_of: Callable[[str], Write | None]) -> Quantise:
    """Quantise the linear layers, except the head, and those for which `writer_of` returns None."""

    def quantise(model: torch.nn.Module, rng: np.random.Generator) -> Stored:
        stored = {}
        for name, module in model.named_modules():
            write = writer_of(name)
            if isinstance(module, torch.nn.Linear) and name != "lm_head" and write is not None:
                parts, dense = write(rng, *module.weight.shape)
                module.weight.data = torch.from_numpy(dense)
                stored |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        return stored

    return quantise


def single_experts(model: torch.nn.Module, rng: np.random.Generator) -> Stored:
    """Quantise experts to fp8. A checkpoint of Qwen3-MoE has three matrices for each of them."""
    stored = {}
    for index, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        width = experts.down_proj.shape[2]
        for expert in range(len(experts.down_proj)):
            places = {
                "gate_proj": experts.gate_up_proj.data[expert, :width],
                "up_proj": experts.gate_up_proj.data[expert, width:],
                "down_proj": experts.down_proj.data[expert],
            }
            for name, place in places.items():
                parts, dense = FORMATS["fp8-blocks"].write(rng, *place.shape)
                place.copy_(torch.from_numpy(dense))
                full = f"model.layers.{index}.mlp.experts.{expert}.{name}"
                stored |= {f"{full}.{part}": tensor for part, tensor in parts.items()}
    return stored


def mxfp4_experts(model: torch.nn.Module, rng: np.random.Generator) -> Stored:
    """Quantise experts to MXFP4, as in gpt-oss; transformers has their matrices [experts, in, out]."""
    stored = {}
    for name, parameter in list(model.named_parameters()):
        if not name.endswith(("gate_up_proj", "down_proj")):
            continue
        num_experts, num_in, num_out = parameter.shape
        layers = [mxfp4(rng, num_out, num_in) for _ in range(num_experts)]
        parameter.data = torch.from_numpy(np.stack([dense.T for _, dense in layers])).contiguous()
        for part in ("blocks", "scales"):
            stored[f"{name}_{part}"] = torch.stack([parts[part] for parts, _ in layers])
    return stored


class Checkpoint:
    """A tiny random checkpoint with quantised weights, and transformers' texts with the dequantised ones."""

    def __init__(self, transformers: Any, family: str, options: Any, settings: Any, quantise: Quantise):
        self._settings = settings
        for seed in range(NUM_SEEDS):
            config = make_config(getattr(transformers, f"{family}Config"), SIZES | options)
            self._model = make_model(transformers, config, seed)
            self._stored = quantise(self._model, np.random.default_rng(seed))
            self.oracle = Oracle(self._model, PROMPTS)
            if self.oracle.is_clear:
                return
        raise AssertionError("no seed gives clear texts")

    def save(self, folder: Path, **changes: Any) -> Path:
        """`changes` replace settings of the quantization_config."""
        save(self._model, folder)
        replaced = {f"{name.rpartition('.')[0]}.weight" for name in self._stored}
        replaced |= {name.removesuffix("_blocks") for name in self._stored}
        dense = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in dense.items() if name not in replaced}
        assert len(kept) < len(dense)
        save_file(kept | self._stored, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = self._settings | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder


def engine_of(folder: Path) -> LLMEngine:
    config = EngineConfig(
        model=str(folder), dtype="float32", block_size=BLOCK_SIZE, num_blocks=64, num_threads=1,
        num_speculative_tokens=0, max_num_batched_tokens=23,
    )  # fmt: skip
    return LLMEngine(load(config), config)


@pytest.mark.parametrize(
    "name",
    [
        "gptq-3-act-order",
        "gptq-4-act-order",
        "gptq-8-one-group",
        "gptq-v2",
        "awq",
        "fp8-blocks",
        "fp8-tensor",
        "fbgemm-fp8",
        "int8-channel",
        "int8-channel-asymmetric",
        "float8-channel",
        "w4a16-group",
        "w4a16-act-order",
    ],
)
def test_a_quantised_checkpoint_equals_transformers(name, transformers, tmp_path):
    form = FORMATS[name]
    biased = {"attention_bias": True}
    checkpoint = Checkpoint(transformers, "Llama", biased, form.config, linears(lambda _name: form.write))
    compare(engine_of(checkpoint.save(tmp_path)), checkpoint.oracle.texts)


def test_a_checkpoint_with_several_formats_equals_transformers(transformers, tmp_path):
    """One layer is dense, the other ones have two formats of compressed-tensors."""

    def writer_of(name: str) -> Write | None:
        if name == "model.layers.0.mlp.down_proj":
            return None
        return FORMATS["int8-channel" if "self_attn" in name else "w4a16-group-asymmetric"].write

    settings = compressed("pack-quantized", num_bits=4, group_size=16, symmetric=False)
    settings["ignore"] = ["lm_head", r"re:.*layers\.0\.mlp\.down"]
    settings["config_groups"]["attention"] = {
        "targets": ["re:.*self_attn.*"],
        "weights": {"num_bits": 8, "strategy": "channel"},
        "format": "int-quantized",
    }
    checkpoint = Checkpoint(transformers, "Llama", {}, settings, linears(writer_of))
    compare(engine_of(checkpoint.save(tmp_path)), checkpoint.oracle.texts)


def test_a_neighbours_format_gives_other_logits(transformers, tmp_path):
    """The two formats of GPTQ differ in their zero points only."""
    form = FORMATS["gptq-4"]
    checkpoint = Checkpoint(transformers, "Llama", {}, form.config, linears(lambda _name: form.write))
    engine = engine_of(checkpoint.save(tmp_path, checkpoint_format="gptq_v2"))
    with pytest.raises(AssertionError, match="logits"):
        compare(engine, checkpoint.oracle.texts)


def test_fp8_experts_with_tensors_of_their_own(transformers, tmp_path):
    options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "head_dim": 16}
    settings = FORMATS["fp8-blocks"].config
    checkpoint = Checkpoint(transformers, "Qwen3Moe", options, settings, single_experts)
    compare(engine_of(checkpoint.save(tmp_path)), checkpoint.oracle.texts)


def test_a_model_of_transformers(transformers, tmp_path):
    """Without a family of its own; transformers merges the experts that the engine has dequantised."""
    options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
    options |= {"shared_expert_intermediate_size": 24}
    form = FORMATS["fp8-blocks"]

    def quantise(model: torch.nn.Module, rng: np.random.Generator) -> Stored:
        return linears(lambda _name: form.write)(model, rng) | single_experts(model, rng)

    checkpoint = Checkpoint(transformers, "Qwen2Moe", options, form.config, quantise)
    folder = checkpoint.save(tmp_path)
    assert find_family(json.loads((folder / "config.json").read_text())) is None
    compare(engine_of(folder), checkpoint.oracle.texts)


def test_mxfp4_experts_of_gpt_oss(transformers, tmp_path):
    options = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    checkpoint = Checkpoint(transformers, "GptOss", options, settings, mxfp4_experts)
    compare(engine_of(checkpoint.save(tmp_path)), checkpoint.oracle.texts)
