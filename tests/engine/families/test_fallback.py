"""Architectures without a family of their own: transformers' code with the engine's attention."""

import pytest
from family_checks import FamilyChecks, Variant

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.models.registry import read_spec

LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.5],
        "long_factor": [1.5, 8.0],
        "original_max_position_embeddings": 64,
    }
}


class TestPhi(FamilyChecks):
    """Phi-1 and 2: parallel layers."""

    prefix = "Phi"
    variants = {
        "plain": Variant(neighbours={"Llama": "has no tensor"}),
        # transformers changes the factors when a text of the batch gets longer than 64 tokens.
        "longrope-short": Variant(LONGROPE, prompt_lengths=(20, 1, 17), max_model_len=64),
        "longrope-long": Variant(LONGROPE, prompt_lengths=(90, 65, 71)),
    }


class TestNemotron(FamilyChecks):
    prefix = "Nemotron"
    variants = {"plain": Variant({"head_dim": 8}, neighbours={"Llama": "has no tensor"})}


class TestQwen2Moe(FamilyChecks):
    prefix = "Qwen2Moe"
    options = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    variants = {
        "plain": Variant({"shared_expert_intermediate_size": 20}, neighbours={"Qwen2": "has no tensor"})
    }


class TestExaone4(FamilyChecks):
    """Layers with and without a window; only those with a window are rotated."""

    prefix = "Exaone4"
    variants = {
        "window": Variant(
            {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]},
            neighbours={"Llama": "has no tensor"},
        )
    }


class TestPhimoe(FamilyChecks):
    """A window that no attention function sees, so none may be set."""

    prefix = "Phimoe"
    options = {"sliding_window": None, "num_local_experts": 4}
    variants = {"plain": Variant(neighbours={"Mixtral": "does not use"})}


class TestGPTJ(FamilyChecks):
    prefix = "GPTJ"
    options = {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 256, "rotary_dim": 4}
    variants = {"plain": Variant(neighbours={"GPT2": "has no tensor"})}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": []}, r"does not know model_type \[\]"),
        ({"model_type": "phi", "vocab_size": None}, "is not valid for PhiForCausalLM"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(values, reason):
    with pytest.raises(ModelLoadError, match=reason) as raised:
        read_spec({"architectures": ["PhiForCausalLM"], **values})
    assert "\n" not in str(raised.value)


def test_a_window_that_only_a_mask_has_is_refused(transformers):
    config = transformers.PhimoeConfig(num_hidden_layers=1, sliding_window=64, max_position_embeddings=128)
    content = {**config.to_dict(), "architectures": ["PhimoeForCausalLM"]}
    with pytest.raises(ModelLoadError, match="its sliding window cannot be given to another attention"):
        read_spec(content)
    assert read_spec(content, max_model_len=64).layers[0].attention.window is None, (
        "the window covers all texts"
    )
    assert read_spec(content | {"sliding_window": None}).layers


def test_a_rotation_that_cannot_be_frozen_is_refused(transformers):
    """transformers chooses it for the longest text of a batch, so a text would depend on its neighbours."""
    config = transformers.LagunaConfig(num_hidden_layers=1, layer_types=["full_attention"])
    ropes = config.rope_parameters
    ropes["full_attention"] |= {"rope_type": "dynamic", "factor": 2.0}
    content = {**config.to_dict(), "architectures": ["LagunaForCausalLM"], "rope_parameters": ropes}
    with pytest.raises(ModelLoadError, match="some of its layers changes with the longest text of a batch"):
        read_spec(content)
    scales = {"partial_rotary_factor": 1.0, "short_mscale": 1.2, "long_mscale": 1.3}
    ropes = {**LONGROPE["rope_parameters"], "short_factor": [1.0] * 4, "long_factor": [1.5] * 4, **scales}
    config = transformers.PhimoeConfig(
        num_hidden_layers=1, hidden_size=48, num_attention_heads=6, num_key_value_heads=2, sliding_window=None
    )
    content = {**config.to_dict(), "architectures": ["PhimoeForCausalLM"], "rope_parameters": ropes}
    with pytest.raises(ModelLoadError, match="its code depends on the values of tensors"):
        read_spec(content)


def test_the_fingerprint_names_the_chosen_frequencies(transformers):
    config = transformers.PhiConfig(
        num_hidden_layers=1, hidden_size=48, num_attention_heads=6, max_position_embeddings=256, **LONGROPE
    )
    content = {**config.to_dict(), "architectures": ["PhiForCausalLM"]}
    variants = [read_spec(content, length).variant for length in (64, 256, 512)]
    assert variants[0] != variants[1] == variants[2]
    assert all("transformers" in variant and "longrope" in variant for variant in variants)
