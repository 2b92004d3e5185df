"""Gemma 3: Gemma 2 with norms of queries and keys and other rotations in layers with a window; multimodal
checkpoints."""

from family_checks import FamilyChecks, Variant
from family_harness import make_config

SLIDING = {"rope_type": "default", "rope_theta": 5e2}


def ropes(**full):
    return {"rope_parameters": {"full_attention": {"rope_theta": 5e3, **full}, "sliding_attention": SLIDING}}


class TestGemma3(FamilyChecks):
    prefix = "Gemma3Text"
    # Each text is several windows long. Tied models this small repeat one token.
    options = {"tie_word_embeddings": False, "head_dim": 12, "query_pre_attn_scalar": 5, "sliding_window": 16}
    variants = {
        "plain": Variant(
            {"layer_types": ["sliding_attention", "full_attention"]} | ropes(rope_type="default"),
            neighbours={"Gemma2": "does not use", "Qwen3": "does not use"},
        ),
        "linear": Variant(ropes(rope_type="linear", factor=4.0)),
    }


class TestGemma3Multimodal(FamilyChecks):
    """The text decoder of a checkpoint that reads images too."""

    prefix = "Gemma3"
    options = TestGemma3.options
    variants = {"plain": Variant(neighbours={"Gemma2": "has no 'max_position_embeddings'"})}

    @classmethod
    def make_config(cls, transformers, options):
        text = make_config(transformers.Gemma3TextConfig, options)
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        image = {"image_size": 16, "patch_size": 8}
        return transformers.Gemma3Config(
            text_config=text, vision_config=vision | image, mm_tokens_per_image=4, tie_word_embeddings=False
        )
