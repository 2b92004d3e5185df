"""Phi-3, Phi-3.5 and Phi-4-mini: joined projections, LongRoPE, a window, and heads rotated in part."""

from family_checks import FamilyChecks, Variant


def longrope(size):
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0, 1.2, 1.5, 2.0][:size],
        "long_factor": [1.5, 3.0, 6.0, 8.0][:size],
    }


class TestPhi3(FamilyChecks):
    prefix = "Phi3"
    variants = {
        "plain": Variant(neighbours={"Llama": "q_proj.weight", "Glm": "q_proj.weight"}),
        "window": Variant({"sliding_window": 16}),
        "short": Variant(
            {"original_max_position_embeddings": 64, "rope_parameters": longrope(4)},
            prompt_lengths=(20, 1, 17),
            max_model_len=64,
        ),
        "long-partial": Variant(
            {
                "original_max_position_embeddings": 64,
                "rope_parameters": longrope(2) | {"partial_rotary_factor": 0.5},
                "tie_word_embeddings": True,
            },
            prompt_lengths=(90, 65, 71),
        ),
    }
