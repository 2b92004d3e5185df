"""Gemma 1: norms stored as a difference from 1, scaled embeddings, GELU."""

from family_checks import DIFFERS, FamilyChecks, Variant


class TestGemma(FamilyChecks):
    prefix = "Gemma"
    options = {"head_dim": 12}
    variants = {
        "plain": Variant(neighbours={"Llama": DIFFERS, "Gemma2": "pre_feedforward_layernorm"}),
        "untied": Variant({"tie_word_embeddings": False}),
        "biased": Variant({"attention_bias": True}),
    }
