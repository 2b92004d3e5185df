"""probe: the ModelSpec of a model that transformers runs, from one step of the model without weights.

The model is built on torch's meta device, and its attention function notes what each layer asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.model_spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from pagefleet.engine.models.config_reader import checkpoint_dtype

__all__ = ["UNTESTED", "freeze_rotation", "probe"]

_PROBE: Final = "pagefleet_probe"
_LAYER_TYPES: Final = {"full_attention", "sliding_attention"}
_LENGTHS: Final = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
UNTESTED: Final = {
    "ctrl",
    "emu3",
    "fuyu",
    "gemma3n_text",
    "gemma4_assistant",
    "got_ocr2",
    "mimo_v2_flash",
    "moshi",
    "moss_transcribe_diarize",
    "phi4_multimodal",
}
"""Model types that no test compares with transformers: their smallest checkpoints are too large, or random
ones have no clear texts."""
_CHANGING: Final = ("dynamic", "longrope")
"""Kinds of RoPE whose frequencies depend on the longest text of a batch."""


class _UnsupportedError(Exception):
    """What a layer asks for cannot be computed with paged attention."""


def probe(content: Mapping[str, Any], max_model_len: int | None = None) -> ModelSpec:
    """Return the description of the model in config.json, as far as the KV cache and the scheduler need it.

    Raises ModelLoadError, which names the architecture and the reason, if it cannot run with paged attention.
    """
    name = (content.get("architectures") or [content.get("model_type")])[0]
    config = _config(content, name)
    text = config.get_text_config(decoder=True)
    _refuse_other_layers(text, name)
    model = _build(config, name)
    _refuse_other_models(model, name)
    found: dict[int, AttentionSpec] = {}
    ALL_ATTENTION_FUNCTIONS.register(_PROBE, partial(_note, found))
    model.set_attn_implementation(_PROBE)
    try:
        ids = torch.zeros(1, 2, dtype=torch.int64, device="meta")
        positions = torch.arange(2, device="meta")[None]
        model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=torch.tensor([1], device="meta"),
        )
    except Exception as error:
        detail = _one_line(error)
        if "meta tensor" in detail:
            detail = "its code depends on the values of tensors"
        reason = f"transformers cannot compute a step with paged attention ({detail})"
        raise _refusal(name, reason) from error
    num_layers = int(text.num_hidden_layers)
    if sorted(found) != list(range(num_layers)):
        raise _refusal(
            name,
            f"only {len(found)} of its {num_layers} layers are attention with a cache of keys and values",
        )
    longest = _longest(text, max_model_len)
    length = min(max_model_len or longest, longest)
    _refuse_unseen_windows(text, found, name, length)
    return _spec(
        content,
        text,
        tuple(found[index] for index in range(num_layers)),
        longest,
        source=" ".join([f"transformers {transformers.__version__}", *_chosen(model, length)]),
    )


def freeze_rotation(model: torch.nn.Module, max_model_len: int) -> None:
    """Choose the frequencies of dynamic and longrope RoPE once, for texts of this length.

    transformers chooses them for the longest text of a batch, so a text would depend on its neighbours.
    """
    for module in _changing(model):
        buffer = next(module.buffers())
        module(buffer[None], torch.tensor([[max_model_len - 1]], device=buffer.device))
        setattr(module, "rope_type", "default")  # noqa: B010


def _changing(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the modules whose frequencies `freeze_rotation` chooses."""
    kinds = ((module, getattr(module, "rope_type", None)) for module in model.modules())
    return [module for module, kind in kinds if isinstance(kind, str) and kind in _CHANGING]


def _chosen(model: torch.nn.Module, max_model_len: int) -> list[str]:
    """Return what `max_model_len` chooses, for the fingerprint."""
    return sorted({f"{module.rope_type}-{max_model_len}" for module in _changing(model)})


def _config(content: Mapping[str, Any], name: Any) -> Any:
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise _refusal(
            name, f"transformers {transformers.__version__} does not know model_type {model_type!r}"
        )
    if model_type in UNTESTED:
        raise _refusal(name, "no test compares it with transformers")
    try:
        config = CONFIG_MAPPING[model_type].from_dict(dict(content))
    except Exception as error:
        raise ModelLoadError(
            f"config.json is not valid for {name} ({_one_line(error)}); download the file again."
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise _refusal(name, "it is an encoder-decoder")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(model_type), ())
    if not known:
        raise _refusal(name, "it does not generate text from text alone")
    known = (known,) if isinstance(known, str) else known
    if content.get("architectures") and name not in known:
        raise _refusal(name, f"model_type {model_type!r} has the architecture {known[0]}")
    return config


def _refuse_other_layers(text: Any, name: Any) -> None:
    others = sorted(set(getattr(text, "layer_types", None) or []) - _LAYER_TYPES)
    if others:
        raise _refusal(name, f"it has layers of the kind {', '.join(others)}")


def _build(config: Any, name: Any) -> Any:
    try:
        with torch.device("meta"):
            # The usual implementations of experts look at their input, which has no values here.
            return AutoModelForCausalLM.from_config(
                config,
                attn_implementation="eager",
                experts_implementation="batched_mm",
                trust_remote_code=False,
            ).eval()
    except Exception as error:
        raise _refusal(name, f"transformers cannot build it ({_one_line(error)})") from error


def _refuse_other_models(model: Any, name: Any) -> None:
    if getattr(model, "_is_stateful", False):
        raise _refusal(name, "it keeps a state instead of keys and values")
    if not type(model).is_backend_compatible():
        raise _refusal(name, "its attention in transformers cannot be replaced")
    ropes = [getattr(module, "rope_type", None) for module in model.modules()]
    if any(isinstance(rope, Mapping) and set(rope.values()) & set(_CHANGING) for rope in ropes):
        raise _refusal(name, "the rotation of some of its layers changes with the longest text of a batch")


def _note(
    found: dict[int, AttentionSpec],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Note the attention of a layer; return values of the right shape."""
    num_heads, head_dim, value_dim = query.shape[1], query.shape[-1], value.shape[-1]
    layer: Any = module.layer_idx
    if options.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise _UnsupportedError("a layer attends in both directions")
    if attention_mask is not None:
        raise _UnsupportedError("a layer has a mask of its own")
    if value_dim > head_dim:
        raise _UnsupportedError("a layer has longer values than keys")
    if layer in found:
        raise _UnsupportedError("a layer computes its attention twice")
    scaling = options.get("scaling")
    found[layer] = AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=key.shape[1],
        head_dim=head_dim,
        value_dim=None if value_dim == head_dim else value_dim,
        scale=head_dim**-0.5 if scaling is None else float(scaling),
        window=options.get("sliding_window"),
        soft_cap=options.get("softcap"),
        sinks=options.get("s_aux") is not None,
    )
    return query.new_empty(1, query.shape[2], num_heads, value_dim), None


def _refuse_unseen_windows(
    text: Any, found: Mapping[int, AttentionSpec], name: Any, max_model_len: int
) -> None:
    """Raise ModelLoadError if a layer has a window that its attention function is not called with."""
    window = getattr(text, "sliding_window", None)
    if not isinstance(window, int) or window >= max_model_len:
        return
    without = [attention.window is None for _, attention in sorted(found.items())]
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        # All layers have the window, or only some of them.
        unseen = all(without)
    else:
        unseen = any(
            is_full and kind == "sliding_attention" for is_full, kind in zip(without, kinds, strict=True)
        )
    if unseen:
        raise _refusal(name, "its sliding window cannot be given to another attention")


def _longest(text: Any, max_model_len: int | None) -> int:
    """Return the context length of the model, in tokens."""
    longest = next((int(getattr(text, name)) for name in _LENGTHS if getattr(text, name, None)), None)
    return longest if longest is not None else max_model_len or 2048


def _spec(
    content: Mapping[str, Any], text: Any, attentions: tuple[AttentionSpec, ...], longest: int, source: str
) -> ModelSpec:
    hidden = int(text.hidden_size)
    width: Any = getattr(text, "intermediate_size", None) or 4 * hidden
    return ModelSpec(
        vocab_size=int(text.vocab_size),
        hidden_size=hidden,
        layers=tuple(
            LayerSpec(each, MlpSpec(max(width) if isinstance(width, list) else width)) for each in attentions
        ),
        final_norm=None,
        tied=False,
        max_model_len=longest,
        dtype=checkpoint_dtype(content),
        source=source,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _refusal(name: Any, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"config.json: architecture {name!r} is not supported: {reason}; use a different model."
    )
