"""Oracle: a checkpoint as transformers computes it, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.schemes.registry import quantization_config
from pagefleet.engine.files.weight_reader import WeightReader
from pagefleet.engine.loading.checkpoint import Checkpoint

__all__ = ["Oracle"]


class Oracle:
    """Computes logits with transformers.

    The weights of a quantised checkpoint are dequantised by the engine's reader, because transformers needs a
    further library for each format. Raises ModelLoadError.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        # The caller reports the stages.
        disable_progress_bar()
        quantised = quantization_config(checkpoint.config) is not None
        load = _load_dequantised if quantised else _load
        try:
            self._model = load(checkpoint.folder)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ModelLoadError(
                f"transformers cannot load {checkpoint.folder} ({error}): there is nothing to compare with."
            ) from error

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int], num_last: int) -> torch.Tensor:
        """Return the logits after each of the last `num_last` tokens: float32 [num_last, vocab]."""
        ids = torch.tensor([list(token_ids)])
        logits: torch.Tensor = self._model(ids, use_cache=False).logits[0, -num_last:]
        return logits.float()

    def encode(self, text: str) -> list[int] | None:
        """Return the token ids of transformers' tokenizer, or None if it cannot load it."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self._checkpoint.tokenizer_folder))
        except (OSError, ValueError, KeyError, ImportError, AttributeError):
            return None
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids


def _load(folder: Path) -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"transformers finds no tensor {', '.join(missing[:3])} in {folder} ({len(missing)} tensors are "
            "missing): there is nothing to compare with."
        )
    return model.eval()


def _load_dequantised(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    quantization = quantization_config(config.to_dict())
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    reader = WeightReader(folder, quantization)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in model.named_parameters()
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            layer, _, kind = name.rpartition(".")
            if kind == "weight" and parameter.ndim == 2 and reader.has_linear(layer):
                parameter.copy_(reader.take_linear(layer).dense())
            elif name in reader:
                parameter.copy_(reader.take(name))
            elif name not in tied:
                raise ModelLoadError(
                    f"the quantised tensor {name} has another form in transformers: there is nothing to "
                    "compare with."
                )
    return model
