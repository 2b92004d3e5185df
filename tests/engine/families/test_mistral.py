"""Mistral: with a sliding window, and without one as in later versions."""

from family_checks import DIFFERS, FamilyChecks, Variant


class TestMistral(FamilyChecks):
    prefix = "Mistral"
    thorough = True
    variants = {
        "full": Variant(
            {"sliding_window": None}, neighbours={"Qwen2": "q_proj.bias", "Qwen3": "q_norm.weight"}
        ),
        # Each text is several windows long.
        "window": Variant({"sliding_window": 16}, neighbours={"Llama": DIFFERS}),
        "head_dim": Variant({"sliding_window": None, "head_dim": 16}),
    }
