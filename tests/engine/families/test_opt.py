"""OPT: with norms before the parts of a layer, and opt-350m's norms after them and narrow embeddings."""

from family_checks import FamilyChecks, Variant


class TestOPT(FamilyChecks):
    prefix = "OPT"
    options = {"ffn_dim": 64}
    variants = {
        "plain": Variant(neighbours={"GPT2": "has no tensor"}),
        "no-bias": Variant({"enable_bias": False, "activation_function": "gelu"}),
        "not-affine": Variant({"layer_norm_elementwise_affine": False}),
    }


class TestOPT350m(FamilyChecks):
    """Norms after the additions, and embeddings of another width."""

    prefix = "OPT"
    # Its logits have no norm before them: with larger embeddings one token would take nearly all probability.
    embedding_std = 0.15
    options = {"ffn_dim": 64, "do_layer_norm_before": False, "word_embed_proj_dim": 80}
    variants = {"plain": Variant(neighbours={"GPT2": "has no tensor"})}
