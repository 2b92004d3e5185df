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
from quantised_formats import FORMATS, Layer, compressed
from safetensors.torch import load_file, save_file

from pagefleet.engine import EngineConfig, LLMEngine
from pagefleet.engine.loading.loader import load

OPTIONS = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "attention_bias": True}
PROMPTS = [[7, 1, 9, 200, 33, 41, 5, 5, 90], [3]]
Write = Callable[[np.random.Generator, int, int], Layer]


def quantised(name: str) -> Write | None:
    """The writer of a layer's format in the mixed checkpoint; None if it is dense."""
    if name == "model.layers.0.mlp.down_proj":
        return None
    return FORMATS["int8-channel" if "self_attn" in name else "w4a16-group-asymmetric"].write


MIXED = compressed(
    "pack-quantized", ["lm_head", r"re:.*layers\.0\.mlp\.down"], num_bits=4, group_size=16, symmetric=False
)
MIXED["config_groups"]["attention"] = {
    "targets": ["re:.*self_attn.*"],
    "weights": {"num_bits": 8, "strategy": "channel"},
    "format": "int-quantized",
}


class Checkpoint:
    """A tiny Llama whose linear layers, except the head, are quantised at random."""

    def __init__(
        self, transformers: Any, config: dict[str, Any], write: Callable[[str], Write | None]
    ) -> None:
        self._config = config
        for seed in range(NUM_SEEDS):
            self.stored: dict[str, torch.Tensor] = {}
            self._model = make_model(transformers, make_config(transformers.LlamaConfig, OPTIONS), seed)
            self._quantise(np.random.default_rng(seed), write)
            self.oracle = Oracle(self._model, PROMPTS)
            if self.oracle.is_clear:
                return
        raise AssertionError("no seed gives clear texts")

    def _quantise(self, rng: np.random.Generator, write: Callable[[str], Write | None]) -> None:
        for name, module in self._model.named_modules():
            writer = write(name)
            if not isinstance(module, torch.nn.Linear) or name == "lm_head" or writer is None:
                continue
            parts, dense = writer(rng, *module.weight.shape)
            module.weight.data = torch.from_numpy(dense)
            self.stored |= {f"{name}.{part}": tensor for part, tensor in parts.items()}

    def save(self, folder: Path, **changes: Any) -> Path:
        """`changes` replace settings of the quantization_config."""
        save(self._model, folder)
        layers = {name.rpartition(".")[0] for name in self.stored}
        dense = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in dense.items() if name.removesuffix(".weight") not in layers}
        save_file(kept | self.stored, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = self._config | changes
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
    checkpoint = Checkpoint(transformers, form.config, lambda _name: form.write)
    compare(engine_of(checkpoint.save(tmp_path)), checkpoint.oracle.texts)


def test_a_checkpoint_with_several_formats_equals_transformers(transformers, tmp_path):
    checkpoint = Checkpoint(transformers, MIXED, quantised)
    compare(engine_of(checkpoint.save(tmp_path)), checkpoint.oracle.texts)


def test_a_neighbours_format_gives_other_logits(transformers, tmp_path):
    """The two formats of GPTQ differ in their zero points only."""
    form = FORMATS["gptq-4"]
    checkpoint = Checkpoint(transformers, form.config, lambda _name: form.write)
    engine = engine_of(checkpoint.save(tmp_path, checkpoint_format="gptq_v2"))
    with pytest.raises(AssertionError, match="logits"):
        compare(engine, checkpoint.oracle.texts)
