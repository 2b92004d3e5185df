"""Llama 1 to 3.x, and what has its tensors and options (SmolLM2)."""

from family_checks import FamilyChecks, Variant


def rope(kind, **parameters):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **parameters}}


LLAMA3 = rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
# Factors for each of the 4 frequencies of a head of 8.
LONGROPE = rope(
    "longrope",
    short_factor=[1.0, 1.2, 1.5, 2.0],
    long_factor=[1.5, 3.0, 6.0, 8.0],
    original_max_position_embeddings=64,
)


class TestLlama(FamilyChecks):
    prefix = "Llama"
    thorough = True
    variants = {
        "plain": Variant(neighbours={"Qwen2": "q_proj.bias", "Qwen3": "q_norm.weight"}),
        "tied": Variant({"tie_word_embeddings": True}),
        "biased": Variant({"attention_bias": True, "mlp_bias": True}),
        # Falcon 3: heads wider than usual.
        "head_dim": Variant({"head_dim": 16}),
        "linear": Variant(rope("linear", factor=4.0)),
        "llama3": Variant(LLAMA3),
        "yarn": Variant(rope("yarn", **YARN)),
        "yarn-mscale": Variant(
            rope("yarn", **YARN, mscale=1.5, mscale_all_dim=0.8, beta_fast=16, beta_slow=2, truncate=False),
        ),
        "dynamic": Variant(
            rope("dynamic", factor=4.0) | {"max_position_embeddings": 64},
            prompt_lengths=(90, 65, 71),
            max_model_len=200,
        ),
        # transformers changes the factors when a text gets longer than 64 tokens, the engine never does.
        "longrope-short": Variant(LONGROPE, prompt_lengths=(20, 1, 17), max_model_len=64),
        "longrope-long": Variant(LONGROPE, prompt_lengths=(90, 65, 71)),
    }
