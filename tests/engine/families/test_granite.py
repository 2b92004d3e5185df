"""Granite 3: Llama with four factors."""

from family_checks import DIFFERS, FamilyChecks, Variant

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
        "tied": Variant({"tie_word_embeddings": True, "residual_multiplier": 1.5}),
        "biased": Variant({"attention_bias": True, "mlp_bias": True}),
        "head_dim": Variant({"head_dim": 12}),
        "unscaled": Variant(dict.fromkeys(FACTORS, 1.0)),
    }
