"""Qwen3: a norm of each head of queries and keys."""

from family_checks import FamilyChecks, Variant


class TestQwen3(FamilyChecks):
    prefix = "Qwen3"
    options = {"head_dim": 12}
    variants = {
        "plain": Variant(neighbours={"Qwen2": "q_proj.bias", "Llama": "does not use"}),
        # Of the two layers, only the upper one has a window.
        "window": Variant({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
        "tied": Variant({"tie_word_embeddings": True}),
        "biased": Variant({"attention_bias": True}),
    }
