"""Gemma 2: four norms a layer, alternating windows, capped scores and logits."""

from family_checks import FamilyChecks, Variant


class TestGemma2(FamilyChecks):
    prefix = "Gemma2"
    # Each text is several windows long. Scores and logits reach the caps. Tied models this small repeat one
    # token.
    options = {
        "tie_word_embeddings": False,
        "head_dim": 12,
        "query_pre_attn_scalar": 5,
        "sliding_window": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 8.0,
    }
    variants = {
        "plain": Variant(neighbours={"Gemma": "does not use", "Gemma3": "q_norm"}),
        "uncapped": Variant({"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        "layer_types": Variant({"layer_types": ["full_attention", "sliding_attention"]}),
        "biased": Variant({"attention_bias": True}),
    }
