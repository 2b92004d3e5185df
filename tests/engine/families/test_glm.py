"""GLM-4: rotated in part and in pairs; the later models have two more norms in each layer."""

from family_checks import FamilyChecks, Variant


class TestGlm(FamilyChecks):
    prefix = "Glm"
    options = {"head_dim": 8}
    variants = {
        "plain": Variant(neighbours={"Glm4": "post_self_attn_layernorm", "Phi3": "qkv_proj"}),
        "no-bias": Variant({"attention_bias": False, "tie_word_embeddings": True}),
    }


class TestGlm4(FamilyChecks):
    prefix = "Glm4"
    options = {"head_dim": 8}
    variants = {"plain": Variant(neighbours={"Glm": "post_mlp_layernorm|post_self_attn_layernorm"})}
