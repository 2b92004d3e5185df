"""Gemma 3: Gemma 2 with norms of queries and keys and other rotations in layers with a window; multimodal
checkpoints."""

import shutil

import pytest
from family_checks import FamilyChecks, Variant, compare
from family_harness import make_config
from hub_configs import assert_read_as_by_transformers
from safetensors.torch import load_file, save_file

SLIDING = {"rope_type": "default", "rope_theta": 5e2}
# Each text is several windows long.
SMALL = {"head_dim": 12, "query_pre_attn_scalar": 5, "sliding_window": 16}


def ropes(**full):
    return {"rope_parameters": {"full_attention": {"rope_theta": 5e3, **full}, "sliding_attention": SLIDING}}


class TestGemma3(FamilyChecks):
    prefix = "Gemma3Text"
    embedding_std = 0.06
    options = SMALL
    variants = {
        "plain": Variant(
            {"layer_types": ["sliding_attention", "full_attention"]} | ropes(rope_type="default"),
            neighbours={"Gemma2": "does not use", "Qwen3": "does not use"},
        ),
        "linear": Variant(
            {"layer_types": ["full_attention", "sliding_attention"], "tie_word_embeddings": False}
            | ropes(rope_type="linear", factor=4.0)
        ),
    }


# The beginnings of names, and those of transformers 4.52 and later instead.
RENAMED = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


class TestGemma3Multimodal(FamilyChecks):
    """The text decoder of a checkpoint with a vision tower."""

    prefix = "Gemma3"
    options = SMALL | {"tie_word_embeddings": False}
    variants = {"plain": Variant(neighbours={"Gemma2": "has no 'max_position_embeddings'"})}

    @classmethod
    def make_config(cls, transformers, options):
        text = make_config(transformers.Gemma3TextConfig, options)
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
        }
        vision |= {"image_size": 8, "patch_size": 4, "model_type": "siglip_vision_model"}
        return transformers.Gemma3Config(
            text_config=text.to_dict(),
            vision_config=vision,
            mm_tokens_per_image=4,
            tie_word_embeddings=text.tie_word_embeddings,
        )

    def test_later_names(self, case, tmp_path):
        folder = tmp_path / "renamed"
        shutil.copytree(case.folder, folder)
        renamed = {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            old = next(each for each in RENAMED if name.startswith(each))
            renamed[RENAMED[old] + name.removeprefix(old)] = tensor
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
        compare(case.engine(folder=folder), case.texts)


SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 13}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        {"rope_theta": 2e6, "rope_local_base_freq": 2e4, "sliding_window_pattern": 5, "rope_scaling": None},
    ],
)
def test_a_config_of_the_hub(transformers, config):
    assert_read_as_by_transformers(transformers.Gemma3TextConfig, "Gemma3ForCausalLM", SIZES | config)
    nested = {"text_config": {"model_type": "gemma3_text", **SIZES, **config}, "torch_dtype": "bfloat16"}
    assert_read_as_by_transformers(transformers.Gemma3Config, "Gemma3ForConditionalGeneration", nested)
