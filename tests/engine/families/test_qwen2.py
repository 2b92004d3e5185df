"""Qwen2 and Qwen2.5: biases of queries, keys and values."""

from family_checks import FamilyChecks, Variant


class TestQwen2(FamilyChecks):
    prefix = "Qwen2"
    variants = {
        "plain": Variant(neighbours={"Qwen3": "q_norm.weight"}),
        "tied": Variant({"tie_word_embeddings": True}),
    }
