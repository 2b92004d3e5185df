"""Gemma 3: Gemma 2 with norms of queries and keys, and other rotations in the layers with a window.

Of multimodal checkpoints only the text decoder is loaded.
"""

from __future__ import annotations

from dataclasses import replace

from pagefleet.engine.model_spec import ModelSpec, QkNormSpec, RopeSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.families.gemma import gemma_attention, gemma_config
from pagefleet.engine.models.families.gemma2 import NAMES, sandwich_model, scale
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import FULL, SLIDING, alternating, rms_norm
from pagefleet.engine.models.rope import read_rope

DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
"""Multimodal checkpoints leave nearly everything out."""


def read(config: ConfigReader) -> ModelSpec:
    config = gemma_config(config).with_defaults(**DEFAULTS)
    qk_norm = QkNormSpec(rms_norm(config, unit_offset=True))
    rope = read_rope(config, layer_type=FULL)
    full = gemma_attention(config, rope, scale=scale(config), qk_norm=qk_norm)
    sliding = replace(full, rope=_sliding_rope(config))
    return sandwich_model(config, alternating(config, period=6, sliding=sliding, full=full))


def _sliding_rope(config: ConfigReader) -> RopeSpec:
    theta = config.number("rope_local_base_freq")
    sliding = ConfigReader({**config.content, "rope_theta": theta}, config.max_model_len)
    return read_rope(sliding, layer_type=SLIDING)


FAMILY = Family(
    model_types=("gemma3_text", "gemma3"),
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    read=read,
    names=replace(
        NAMES,
        prefixes=(("", "language_model."), ("model.", "model.language_model.")),
        ignored=(
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ),
    ),
    text_config="text_config",
)
