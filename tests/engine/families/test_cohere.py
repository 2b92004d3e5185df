"""Cohere Command-R: parallel attention and MLP, layer norms, rotation of neighbours, scaled logits."""

from family_checks import DIFFERS, FamilyChecks, Variant


class TestCohere(FamilyChecks):
    prefix = "Cohere"
    options = {"logit_scale": 0.7}
    variants = {
        "plain": Variant(
            {"num_hidden_layers": 4},
            neighbours={"Llama": "post_attention_layernorm", "Cohere2": DIFFERS},
        ),
        "untied": Variant({"tie_word_embeddings": False}),
        "biased": Variant({"attention_bias": True}),
        "qk_norm": Variant({"use_qk_norm": True}, neighbours={"Cohere2": "does not use"}),
    }
