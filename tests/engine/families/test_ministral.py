"""Ministral: layers with and without a window. Ministral 3: queries that grow with their position."""

from family_checks import DIFFERS, FamilyChecks, Variant

GROWTH = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.5,
}


class TestMinistral(FamilyChecks):
    prefix = "Ministral"
    options = {"head_dim": 16}
    variants = {
        "mixed": Variant(
            {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]},
            neighbours={"Llama": DIFFERS},
        ),
        "full": Variant({"layer_types": ["full_attention", "full_attention"]}),
    }


class TestMinistral3(FamilyChecks):
    prefix = "Ministral3"
    options = {"rope_parameters": GROWTH, "head_dim": 8}
    variants = {
        "growth": Variant(neighbours={"Mistral": DIFFERS, "Llama": DIFFERS}),
        "no-growth": Variant({"rope_parameters": GROWTH | {"llama_4_scaling_beta": 0.0}}),
    }
