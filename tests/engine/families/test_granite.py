"""Granite 3: Llama with four factors."""

from family_checks import DIFFERS, FamilyChecks, Variant
from hub_configs import assert_read_as_by_transformers

FACTORS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.6,
    "residual_multiplier": 0.4,
    "logits_scaling": 0.8,
}


class TestGranite(FamilyChecks):
    prefix = "Granite"
    options = FACTORS
    variants = {
        "plain": Variant(neighbours={"Llama": DIFFERS}),
        "tied": Variant({"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        "unscaled": Variant({"head_dim": 12, **dict.fromkeys(FACTORS, 1.0)}),
    }


def test_a_config_of_the_hub(transformers):
    config = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "max_position_embeddings": 4096,
        "num_attention_heads": 6,
        "num_hidden_layers": 2,
        "rope_theta": 10_000_000.0,
        "vocab_size": 260,
    }
    assert_read_as_by_transformers(transformers.GraniteConfig, "GraniteForCausalLM", config)
