"""OPT: with norms before the parts of a layer, and opt-350m's norms after them and narrow embeddings."""

from family_checks import FamilyChecks, Variant


class TestOPT(FamilyChecks):
    prefix = "OPT"
    options = {"ffn_dim": 64}
    variants = {
        "plain": Variant(neighbours={"GPT2": "has no tensor"}),
        "after": Variant({"do_layer_norm_before": False, "word_embed_proj_dim": 80}),
        "no-bias": Variant({"enable_bias": False, "activation_function": "gelu"}),
        "not-affine": Variant({"layer_norm_elementwise_affine": False}),
    }
