"""Qwen2 and Qwen2.5: biases of queries, keys and values."""

from family_checks import DIFFERS, FamilyChecks, Variant


class TestQwen2(FamilyChecks):
    prefix = "Qwen2"
    variants = {
        "plain": Variant(neighbours={"Qwen3": "q_norm.weight"}),
        # Of the two layers, only the upper one has a window.
        "window": Variant(
            {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
            neighbours={"Llama": DIFFERS},
        ),
        "tied": Variant({"tie_word_embeddings": True}),
    }
