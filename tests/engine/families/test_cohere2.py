"""Cohere Command-R7B: Command-R with sliding windows, and no rotation in the layers without one."""

from family_checks import DIFFERS, FamilyChecks, Variant


class TestCohere2(FamilyChecks):
    prefix = "Cohere2"
    # Each text is several windows long.
    options = {"logit_scale": 0.7, "sliding_window": 16}
    variants = {
        "plain": Variant({"num_hidden_layers": 4}, neighbours={"Cohere": DIFFERS}),
        "layer_types": Variant({"layer_types": ["full_attention", "sliding_attention"]}),
        "untied": Variant({"tie_word_embeddings": False, "attention_bias": True}),
    }
