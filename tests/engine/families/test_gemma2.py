"""Gemma 2: four norms a layer, alternating windows, capped scores and logits."""

import pytest
from family_checks import FamilyChecks, Variant
from hub_configs import assert_read_as_by_transformers


class TestGemma2(FamilyChecks):
    prefix = "Gemma2"
    embedding_std = 0.06
    # Each text is several windows long. Scores and logits reach the caps.
    options = {
        "head_dim": 12,
        "query_pre_attn_scalar": 5,
        "sliding_window": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5,
    }
    variants = {
        "plain": Variant(neighbours={"Gemma": "does not use", "Gemma3": "q_norm"}),
        "uncapped": Variant(
            {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True}
        ),
        "untied": Variant(
            {"tie_word_embeddings": False, "final_logit_softcapping": 12.0}, marks=[pytest.mark.slow]
        ),
        "layer_types": Variant({"layer_types": ["full_attention", "sliding_attention"]}),
    }


def test_a_config_of_the_hub(transformers):
    config = {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 48,
        "intermediate_size": 64,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 3,
        "vocab_size": 260,
    }
    assert_read_as_by_transformers(transformers.Gemma2Config, "Gemma2ForCausalLM", config)
