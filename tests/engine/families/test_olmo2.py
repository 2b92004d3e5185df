"""OLMo 2: norms after attention and MLP, and of queries and keys across heads."""

from family_checks import FamilyChecks, Variant
from hub_configs import assert_read_as_by_transformers


class TestOlmo2(FamilyChecks):
    prefix = "Olmo2"
    variants = {
        "plain": Variant(neighbours={"Llama": "input_layernorm", "Qwen3": "input_layernorm"}),
        "tied": Variant({"tie_word_embeddings": True}),
        "biased": Variant({"attention_bias": True, "num_hidden_layers": 4}),
    }


def test_a_config_of_the_hub(transformers):
    sizes = {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_hidden_layers": 2,
        "max_position_embeddings": 4096,
    }
    config = {
        "rope_theta": 500_000,
        "rope_scaling": None,
        "vocab_size": 260,
        "intermediate_size": 64,
        **sizes,
    }
    assert_read_as_by_transformers(transformers.Olmo2Config, "Olmo2ForCausalLM", config)
