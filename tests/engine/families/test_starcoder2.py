"""StarCoder2: layer norms, an MLP without a gate, with and without biases and a window."""

from family_checks import FamilyChecks, Variant


class TestStarcoder2(FamilyChecks):
    prefix = "Starcoder2"
    variants = {
        "plain": Variant(neighbours={"Llama": "mlp.gate_proj", "Mistral": "mlp.gate_proj"}),
        "window": Variant({"sliding_window": 16, "use_bias": False, "tie_word_embeddings": False}),
    }
