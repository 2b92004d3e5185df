"""Each format of quantised weights against numpy, number by number, and which layers have it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantised_formats import FORMATS, Layer, compressed, mxfp4, packed
from safetensors.torch import save_file

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.schemes.registry import check_quantization, quantization_config, read_quantization
from pagefleet.engine.files.weight_reader import WeightReader
from pagefleet.engine.loading.model_size import model_size

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 1,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "max_position_embeddings": 8,
    "vocab_size": 8,
}


def written(name: str) -> Layer:
    form = FORMATS[name]
    return form.write(np.random.default_rng(7), *form.shape)


def dense(parts: dict[str, torch.Tensor], config: dict[str, Any] | None) -> np.ndarray:
    stored = {f"up.{part}" for part in parts}
    return read_quantization(config).scheme_of("up", stored).dense(parts).numpy()


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_equals_its_definition(name, tmp_path):
    parts, expected = written(name)
    bias = torch.randn(len(expected))
    save_file(
        {f"up.{part}": t for part, t in parts.items()} | {"up.bias": bias}, tmp_path / "model.safetensors"
    )
    reader = WeightReader(tmp_path, FORMATS[name].config)
    assert reader.has_linear("up")
    layer = reader.take_linear("up")
    assert layer.shape == expected.shape
    assert layer.dense().dtype == torch.float32
    assert np.array_equal(layer.dense().numpy(), expected)
    assert torch.equal(layer.bias, bias)
    assert set(layer.parts) == set(parts) - {"input_scale"}, "as stored, for backends that compute on them"
    reader.assert_all_taken()


@pytest.mark.parametrize(
    ("name", "neighbour"),
    [("gptq-4", "gptq-v2"), ("gptq-v2", "gptq-4"), ("fp8-blocks", "fp8-other-blocks")],
)
def test_a_neighbours_format_gives_other_weights(name, neighbour):
    parts, expected = written(name)
    configs = {each: form.config for each, form in FORMATS.items()}
    configs["fp8-other-blocks"] = configs["fp8-blocks"] | {"weight_block_size": [18, 18]}
    result = dense(parts, configs[neighbour])
    assert result.shape == expected.shape
    assert not np.array_equal(result, expected)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("gptq-4-act-order", "g_idx"),
        ("int8-channel-asymmetric", "weight_zero_point"),
        ("w4a16-group-asymmetric", "weight_zero_point"),
        ("w4a16-act-order", "weight_g_idx"),
    ],
)
def test_every_stored_part_counts(name, part):
    parts, expected = written(name)
    del parts[part]
    assert not np.array_equal(dense(parts, FORMATS[name].config), expected)


@pytest.mark.parametrize(("name", "part"), [("gptq-4", "g_idx"), ("w4a16-group", "weight_g_idx")])
def test_an_order_that_says_nothing_is_the_consecutive_one(name, part):
    """AutoGPTQ writes zeros, compressed-tensors -1."""
    parts, expected = written(name)
    fill = 0 if part == "g_idx" else -1
    parts[part] = torch.full((expected.shape[1],), fill, dtype=torch.int32)
    assert np.array_equal(dense(parts, FORMATS[name].config), expected)


# -- MXFP4 ----------------------------------------------------------------------------------------------


def test_mxfp4_experts_equal_the_definition_and_transformers(tmp_path, transformers):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(3)
    layers = [mxfp4(rng, 5, 96) for _ in range(3)]
    blocks, scales = (torch.stack([parts[name] for parts, _ in layers]) for name in ("blocks", "scales"))
    bias = torch.randn(3, 5)
    save_file({"up_blocks": blocks, "up_scales": scales, "up_bias": bias}, tmp_path / "model.safetensors")
    reader = WeightReader(tmp_path, {"quant_method": "mxfp4"})
    experts = reader.take_experts("up")
    assert experts.shape == (3, 5, 96)
    assert np.array_equal(experts.dense().numpy(), np.stack([expected for _, expected in layers]))
    assert torch.equal(experts.expert(2).dense(), experts.dense()[2])
    assert torch.equal(experts.expert(1).bias, bias[1])
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(theirs.mT, experts.dense()), "transformers has [experts, in, out]"
    reader.assert_all_taken()


def test_the_ends_of_mxfp4s_scales(tmp_path):
    """255 is not a number; 0 is 2^-127, which float32 stores without its full precision."""
    blocks = torch.full((1, 1, 2, 16), 0x22, dtype=torch.uint8)
    scales = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    save_file({"up_blocks": blocks, "up_scales": scales}, tmp_path / "model.safetensors")
    row = WeightReader(tmp_path, {"quant_method": "mxfp4"}).take_experts("up").dense()[0, 0]
    assert row[0] == 2.0**-127
    assert row[32:].isnan().all()


@pytest.mark.parametrize("transposed", [False, True])
def test_dense_experts_are_read_in_both_orders(tmp_path, transposed):
    weight = torch.randn(4, 6, 8)
    stored = weight.mT.contiguous() if transposed else weight
    save_file({"up": stored}, tmp_path / "model.safetensors")
    experts = WeightReader(tmp_path).take_experts("up", transposed=transposed)
    assert torch.equal(experts.dense(), weight)
    assert experts.bias is None


# -- other implementations ------------------------------------------------------------------------------


def test_fp8_blocks_equal_transformers(transformers):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    config = FORMATS["fp8-blocks"].config
    parts, _ = FORMATS["fp8-blocks"].write(np.random.default_rng(1), 32, 48)
    theirs = Fp8Dequantize(None)._dequantize_one(parts["weight"], parts["weight_scale_inv"])
    assert np.array_equal(dense(parts, config), theirs.numpy())


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, form in FORMATS.items()
        # The library has removed groups in the order of activations, and zero points that are not packed.
        if form.config["quant_method"] == "compressed-tensors"
        and name not in ("w4a16-act-order", "w4a16-group-int8-zeros")
    ],
)
def test_compressed_tensors_equals_its_own_library(name):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    group = FORMATS[name].config["config_groups"]["group_0"]
    scheme = QuantizationScheme(targets=["Linear"], weights=group["weights"])
    parts, _ = written(name)
    parts = {part: tensor.float() if "scale" in part else tensor for part, tensor in parts.items()}
    compressor = BaseCompressor.get_value_from_registry(FORMATS[name].config["format"])
    theirs = compressor.decompress(dict(parts), scheme)["weight"]
    assert np.array_equal(dense(parts, FORMATS[name].config), theirs.numpy())


# -- which layers are quantised -------------------------------------------------------------------------


def save_layers(folder: Path, layers: dict[str, dict[str, torch.Tensor]]) -> None:
    tensors = {f"{layer}.{part}": t for layer, parts in layers.items() for part, t in parts.items()}
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_that_the_quantiser_skipped_is_dense(name, tmp_path):
    weight = torch.randn(32, 64)
    parts, expected = written(name)
    save_layers(tmp_path, {"up": parts, "lm_head": {"weight": weight}})
    reader = WeightReader(tmp_path, FORMATS[name].config)
    assert torch.equal(reader.take_linear("lm_head").dense(), weight)
    assert np.array_equal(reader.take_linear("up").dense().numpy(), expected)


def test_groups_of_compressed_tensors_apply_by_target(tmp_path):
    """A name goes before a regular expression, which goes before the class; the ignored layer is dense."""
    rng = np.random.default_rng(5)
    config = compressed("pack-quantized", ["lm_head", "re:.*gate$"], num_bits=4, group_size=16)
    groups = config["config_groups"]
    int8 = {"num_bits": 8, "strategy": "channel"}
    groups["group_1"] = {"targets": ["re:.*attn.*"], "weights": int8}
    plain = {"num_bits": 8, "strategy": "tensor"}
    groups["group_2"] = {"targets": ["a.attn.q"], "weights": plain, "format": "naive-quantized"}
    writers = {
        "a.attn.q": FORMATS["int8-tensor"].write,
        "a.attn.k": packed(8, None, True),
        "a.mlp.up": packed(4, 16, True),
    }
    layers = {name: write(rng, 8, 32) for name, write in writers.items()}
    gate = torch.randn(8, 32)
    save_layers(
        tmp_path, {name: parts for name, (parts, _) in layers.items()} | {"a.mlp.gate": {"weight": gate}}
    )
    reader = WeightReader(tmp_path, config)
    for name, (_, expected) in layers.items():
        assert np.array_equal(reader.take_linear(name).dense().numpy(), expected), name
    assert torch.equal(reader.take_linear("a.mlp.gate").dense(), gate)


def test_a_single_group_holds_for_names_that_no_target_has(tmp_path):
    config = compressed("pack-quantized", num_bits=4, group_size=16)
    config["config_groups"]["group_0"]["targets"] = ["re:model.language_model.layers.*"]
    parts, expected = written("w4a16-group")
    save_layers(tmp_path, {"language_model.model.layers.0.up": parts})
    layer = WeightReader(tmp_path, config).take_linear("language_model.model.layers.0.up")
    assert np.array_equal(layer.dense().numpy(), expected)


def test_gptqs_dynamic_bits_apply_by_name(tmp_path):
    rng = np.random.default_rng(6)
    config = FORMATS["gptq-4"].config | {
        "dynamic": {"-:.*skip": {}, "+:.*down": {"bits": 8, "group_size": -1}}
    }
    up, down = FORMATS["gptq-4"].write(rng, 32, 64), FORMATS["gptq-8-one-group"].write(rng, 32, 64)
    save_layers(tmp_path, {"a.up": up[0], "a.down": down[0]})
    reader = WeightReader(tmp_path, config)
    assert np.array_equal(reader.take_linear("a.up").dense().numpy(), up[1])
    assert np.array_equal(reader.take_linear("a.down").dense().numpy(), down[1])


@pytest.mark.parametrize("name", FORMATS)
def test_the_size_in_memory_is_that_of_dense_weights(name, tmp_path):
    parts, expected = written(name)
    save_layers(tmp_path, {"up": parts, "lm_head": {"weight": torch.randn(32, 64).bfloat16()}})
    config = {"quantization_config": FORMATS[name].config, "dtype": "bfloat16"} | LLAMA
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Packed rows may end with a few unused numbers.
    padding = 16 * len(expected) if "packed" in str(list(parts)) else 0
    exact = 2 * (expected.size + 32 * 64)
    assert exact <= model_size(tmp_path).weight_bytes <= exact + 2 * padding


# -- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "method 'bitsandbytes' is not supported"),
        ({"load_in_8bit": True}, "method 'bitsandbytes' is not supported"),
        ({"quant_method": "hqq"}, "method 'hqq' is not supported; use a checkpoint of the model in bfloat16"),
        ({"bits": 4}, "method 'unknown'"),
        ("gptq", "must be a table of settings"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv' and 4 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "in the format 'marlin'"),
        ({"quant_method": "gptq", "bits": 5}, "bits of GPTQ weights must be 2, 3, 4 or 8, not 5"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size must be -1 or at least 1, not 0"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size must be two positive"),
        (compressed("nvfp4-pack-quantized", num_bits=4, type="float"), "format 'nvfp4-pack-quantized'"),
        (compressed("pack-quantized", num_bits=3), "with 3 bits are not supported"),
        (compressed("int-quantized", strategy="group"), "strategy 'group' has the group_size None"),
        (compressed("int-quantized", strategy="block"), "strategy 'block' has the group_size None"),
        (compressed("int-quantized", strategy="tensor_group"), "strategy 'tensor_group' of weights"),
        (compressed("dense") | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "'sparse-24-bitmask'"),
        (
            compressed("dense") | {"transform_config": {"config_groups": {"R1": {}}}},
            "transform_config is not",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": ["Linear"]},
            "config_groups must be a table",
        ),
    ],
)
def test_an_unsupported_format_is_refused_by_name(quantization, reason):
    with pytest.raises(ModelLoadError, match=re.escape(reason)):
        check_quantization({"quantization_config": quantization})


def test_settings_are_found_where_older_files_have_them():
    settings = FORMATS["int8-channel"].config
    older = {"compression_config": {"quantization_config": settings, "sparsity_config": {"format": "dense"}}}
    for config in (older, {"text_config": {"quantization_config": settings}}):
        found = quantization_config(config)
        assert found is not None
        assert found["config_groups"] == settings["config_groups"]
        check_quantization(config)
    assert quantization_config({"text_config": None}) is None


@pytest.mark.parametrize(
    ("name", "part", "reason"),
    [
        ("gptq-4", "scales", r"up: scales has the shape \(1, 64\), but .* demand \(3, 64\)"),
        ("awq", "qzeros", r"up: qzeros has the shape \(1, 3\)"),
        ("fp8-blocks", "weight_scale_inv", r"up: weight_scale_inv has the shape \(1, 3\)"),
        ("int8-channel", "weight_scale", r"up: weight_scale has the shape \(1, 1\)"),
        ("w4a16-group", "weight_packed", r"up: weight_packed has the shape \(1, 6\)"),
    ],
)
def test_parts_that_do_not_match_are_refused(name, part, reason, tmp_path):
    parts, _ = written(name)
    parts[part] = parts[part][:1].contiguous()
    save_layers(tmp_path, {"up": parts})
    with pytest.raises(ModelLoadError, match=reason):
        WeightReader(tmp_path, FORMATS[name].config).take_linear("up")


@pytest.mark.parametrize(
    ("name", "part"),
    [("gptq-4", "scales"), ("fp8-blocks", "weight_scale_inv"), ("w4a16-group", "weight_scale")],
)
def test_scales_that_are_integers_are_refused(name, part, tmp_path):
    """As some versions of fp8 have: exponents in bytes."""
    parts, _ = written(name)
    parts[part] = parts[part].to(torch.uint8)
    save_layers(tmp_path, {"up": parts})
    with pytest.raises(ModelLoadError, match=f"up: {part} has the dtype torch.uint8"):
        WeightReader(tmp_path, FORMATS[name].config).take_linear("up")


@pytest.mark.parametrize(("name", "part"), [("gptq-4", "g_idx"), ("w4a16-act-order", "weight_g_idx")])
def test_a_group_that_does_not_exist_is_refused(name, part, tmp_path):
    parts, _ = written(name)
    parts[part][5] = 7
    save_layers(tmp_path, {"up": parts})
    with pytest.raises(ModelLoadError, match=f"up: {part} contains the group 7, but there are 3 groups"):
        WeightReader(tmp_path, FORMATS[name].config).take_linear("up")


@pytest.mark.parametrize("name", ["fp8-tensor", "int8-channel"])
def test_quantised_weights_without_scales_are_refused(name, tmp_path):
    """Read as they are, they would be weights a hundred times too large."""
    parts, _ = written(name)
    save_layers(tmp_path, {"up": {"weight": parts["weight"]}})
    for config in (FORMATS[name].config, None):
        with pytest.raises(ModelLoadError, match=r"up: weight has the shape .* not quantised"):
            WeightReader(tmp_path, config).take_linear("up")


def test_the_page_has_every_method():
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.split("## Quantised safetensors")[1].split("\n## ")[0]
    rows = set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE))
    with pytest.raises(ModelLoadError) as refusal:
        check_quantization({"quantization_config": {"quant_method": "none"}})
    assert rows - {"quant_method"} == set(
        re.findall(r"[\w-]+", str(refusal.value).split("the method ")[2].split(", or")[0])
    )
