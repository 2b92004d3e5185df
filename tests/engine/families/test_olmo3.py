"""OLMo 3: OLMo 2 with sliding windows, and scaled rotations in the layers without one."""

from family_checks import DIFFERS, FamilyChecks, Variant
from hub_configs import assert_read_as_by_transformers

DEFAULT = {"rope_type": "default", "rope_theta": 5e3}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 5e3}


class TestOlmo3(FamilyChecks):
    prefix = "Olmo3"
    # Each text is several windows long.
    options = {"sliding_window": 16, "num_hidden_layers": 4}
    variants = {
        "plain": Variant(neighbours={"Olmo2": DIFFERS}),
        "layer_types": Variant(
            {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}
        ),
        "yarn": Variant({"rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT}}),
    }


def test_a_config_of_the_hub(transformers):
    """Given older names, only the layers without a window are scaled."""
    config = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "max_position_embeddings": 65_536,
        "num_attention_heads": 6,
        "num_hidden_layers": 5,
        "rope_scaling": {
            "attention_factor": 1.2,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        "rope_theta": 500_000,
        "vocab_size": 260,
    }
    assert_read_as_by_transformers(transformers.Olmo3Config, "Olmo3ForCausalLM", config)
