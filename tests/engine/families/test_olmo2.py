"""OLMo 2: norms after attention and MLP, and of queries and keys across heads."""

from family_checks import FamilyChecks, Variant


class TestOlmo2(FamilyChecks):
    prefix = "Olmo2"
    variants = {
        "plain": Variant(neighbours={"Llama": "input_layernorm", "Qwen3": "input_layernorm"}),
        "tied": Variant({"tie_word_embeddings": True}),
        "biased": Variant({"attention_bias": True}),
    }
