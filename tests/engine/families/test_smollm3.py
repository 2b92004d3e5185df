"""SmolLM3: layers without a rotation, which may have a sliding window."""

import pytest
from family_checks import DIFFERS, FamilyChecks, Variant
from hub_configs import assert_read_as_by_transformers


class TestSmolLM3(FamilyChecks):
    prefix = "SmolLM3"
    options = {"no_rope_layer_interval": 2}
    variants = {
        "plain": Variant(neighbours={"Llama": DIFFERS}),
        "no_rope_layers": Variant({"no_rope_layers": [0, 1]}),
        "untied": Variant({"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        "window": Variant({"use_sliding_window": True, "sliding_window": 16}),
    }


SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "max_position_embeddings": 65_536,
    "num_attention_heads": 8,
    "num_hidden_layers": 9,
    "vocab_size": 260,
}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_theta": 5e6, "no_rope_layers": [1, 1, 0, 1, 0, 1, 1, 1, 0], "sliding_window": None},
        {"use_sliding_window": True, "sliding_window": 1024, "num_key_value_heads": None},
    ],
)
def test_a_config_of_the_hub(transformers, config):
    assert_read_as_by_transformers(transformers.SmolLM3Config, "SmolLM3ForCausalLM", SIZES | config)
