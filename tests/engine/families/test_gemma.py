"""Gemma 1: norms stored as a difference from 1, scaled embeddings, GELU."""

import pytest
from family_checks import DIFFERS, FamilyChecks, Variant
from hub_configs import assert_read_as_by_transformers


class TestGemma(FamilyChecks):
    prefix = "Gemma"
    options = {"head_dim": 12}
    variants = {
        "plain": Variant(neighbours={"Llama": DIFFERS, "Gemma2": "pre_feedforward_layernorm"}),
        "untied": Variant({"tie_word_embeddings": False, "attention_bias": True}),
    }


@pytest.mark.parametrize("activation", [{}, {"hidden_act": "gelu"}])
def test_a_config_of_the_hub(transformers, activation):
    config = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "rope_theta": 10_000.0,
        "vocab_size": 260,
        **activation,
    }
    assert_read_as_by_transformers(transformers.GemmaConfig, "GemmaForCausalLM", config)
