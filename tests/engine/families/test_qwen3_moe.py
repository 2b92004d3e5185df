"""Qwen3 with experts: in all layers or in some, with the experts' weights normalised or not."""

from family_checks import FamilyChecks, Variant


class TestQwen3Moe(FamilyChecks):
    prefix = "Qwen3Moe"
    options = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
    variants = {
        "plain": Variant({"norm_topk_prob": True}, neighbours={"Qwen3": "mlp.gate_proj.weight"}),
        "not-normalised": Variant({"norm_topk_prob": False}),
        "some-layers": Variant(
            {
                "norm_topk_prob": True,
                "num_hidden_layers": 4,
                "decoder_sparse_step": 2,
                "mlp_only_layers": [3],
            },
            neighbours={"Qwen3": "mlp.gate_proj.weight"},
        ),
    }
