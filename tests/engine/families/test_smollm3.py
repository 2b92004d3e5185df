"""SmolLM3: layers without a rotation, which may have a sliding window."""

from family_checks import DIFFERS, FamilyChecks, Variant


class TestSmolLM3(FamilyChecks):
    prefix = "SmolLM3"
    options = {"no_rope_layer_interval": 2}
    variants = {
        "plain": Variant(neighbours={"Llama": DIFFERS}),
        "untied": Variant({"tie_word_embeddings": False}),
        "no_rope_layers": Variant({"no_rope_layers": [0, 1]}),
        "biased": Variant({"attention_bias": True, "mlp_bias": True}),
        "window": Variant({"use_sliding_window": True, "sliding_window": 16}),
    }
