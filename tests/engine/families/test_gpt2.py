"""GPT-2: with the scales of the scores that some models have."""

from family_checks import FamilyChecks, Variant


class TestGPT2(FamilyChecks):
    prefix = "GPT2"
    options = {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 256}
    variants = {
        "plain": Variant(neighbours={"OPT": "config.json has no 'num_attention_heads'"}),
        "untied": Variant({"tie_word_embeddings": False, "n_inner": 40}),
        "inverse": Variant({"scale_attn_by_inverse_layer_idx": True}),
    }
