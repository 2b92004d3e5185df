"""gpt-oss: sinks, alternating windows, biases everywhere, and experts with a clamped activation."""

from family_checks import FamilyChecks, Variant

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}


class TestGptOss(FamilyChecks):
    prefix = "GptOss"
    thorough = True
    options = {
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "sliding_window": 16,
        "rope_parameters": YARN,
    }
    variants = {
        "plain": Variant(neighbours={"Mixtral": "block_sparse_moe.gate.weight", "Qwen3Moe": "q_norm.weight"}),
        "full": Variant({"layer_types": ["full_attention", "full_attention"]}),
    }
