"""Architectures without a family of their own: transformers' code with the engine's attention."""

import pytest
from family_checks import FamilyChecks, Variant

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.models.registry import read_spec


class TestPhi(FamilyChecks):
    """Phi-1 and 2: parallel layers."""

    prefix = "Phi"
    variants = {"plain": Variant(neighbours={"Llama": "has no tensor"})}


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
