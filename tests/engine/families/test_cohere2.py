"""Cohere Command-R7B: Command-R with sliding windows, and no rotation in the layers without one."""

import pytest
from family_checks import DIFFERS, FamilyChecks, Variant
from hub_configs import assert_read_as_by_transformers


class TestCohere2(FamilyChecks):
    prefix = "Cohere2"
    # Each text is several windows long.
    options = {"logit_scale": 0.7, "sliding_window": 16}
    variants = {
        "plain": Variant({"num_hidden_layers": 4}, neighbours={"Cohere": DIFFERS}),
        "layer_types": Variant({"layer_types": ["full_attention", "sliding_attention"]}),
        "untied": Variant({"tie_word_embeddings": False, "attention_bias": True}),
    }


@pytest.mark.parametrize("pattern", [{}, {"sliding_window_pattern": 3}])
def test_a_config_of_the_hub(transformers, pattern):
    config = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "max_position_embeddings": 8192,
        "num_attention_heads": 6,
        "num_hidden_layers": 9,
        "num_key_value_heads": 2,
        "rope_theta": 50_000,
        "vocab_size": 260,
        **pattern,
    }
    assert_read_as_by_transformers(transformers.Cohere2Config, "Cohere2ForCausalLM", config)
