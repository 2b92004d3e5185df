"""OLMo 3: OLMo 2 with sliding windows, and scaled rotations in the layers without one."""

from family_checks import DIFFERS, FamilyChecks, Variant

DEFAULT = {"rope_type": "default", "rope_theta": 5e3}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 5e3}


class TestOlmo3(FamilyChecks):
    prefix = "Olmo3"
    # Each text is several windows long.
    options = {"sliding_window": 16, "num_hidden_layers": 4}
    variants = {
        "plain": Variant(neighbours={"Olmo2": DIFFERS}),
        "layer_types": Variant(
            {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}
        ),
        "yarn": Variant({"rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT}}),
    }
