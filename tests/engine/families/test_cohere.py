"""Cohere Command-R: parallel attention and MLP, layer norms, rotation of neighbours, scaled logits."""

from family_checks import DIFFERS, FamilyChecks, Variant
from hub_configs import assert_read_as_by_transformers


class TestCohere(FamilyChecks):
    prefix = "Cohere"
    options = {"logit_scale": 0.7}
    variants = {
        "plain": Variant(
            {"num_hidden_layers": 4},
            neighbours={"Llama": "post_attention_layernorm", "Cohere2": DIFFERS},
        ),
        "untied": Variant({"tie_word_embeddings": False, "attention_bias": True}),
        "qk_norm": Variant({"use_qk_norm": True}, neighbours={"Cohere2": "does not use"}),
    }


def test_a_config_of_the_hub(transformers):
    config = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "max_position_embeddings": 8192,
        "model_max_length": 131_072,
        "num_attention_heads": 6,
        "num_hidden_layers": 2,
        "use_cache": True,
        "vocab_size": 260,
    }
    assert_read_as_by_transformers(transformers.CohereConfig, "CohereForCausalLM", config)
