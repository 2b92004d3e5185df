"""Oracle: a checkpoint as transformers computes it, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.schemes.registry import quantization_config
from pagefleet.engine.loading.checkpoint import Checkpoint
from pagefleet.engine.models.fallback import from_pretrained

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
        try:
            model, report = from_pretrained(
                checkpoint.folder,
                quantization_config(checkpoint.config),
                dtype=torch.float32,
                attn_implementation="eager",
                experts_implementation="eager",
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ModelLoadError(
                f"transformers cannot load {checkpoint.folder} ({error}): there is nothing to compare with."
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise ModelLoadError(
                f"transformers finds no tensor {', '.join(missing[:3])} in {checkpoint.folder} "
                f"({len(missing)} tensors are missing): there is nothing to compare with."
            )
        self._model = model.eval()

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int], num_last: int) -> torch.Tensor:
        """Return the logits after each of the last `num_last` tokens: float32 [num_last, vocab]."""
        ids = torch.tensor([list(token_ids)])
        logits: torch.Tensor = self._model(ids, use_cache=False).logits[0, -num_last:]
        return logits.float()

    def encode(self, text: str) -> list[int] | None:
        """Return the token ids of transformers' tokenizer, or None if it cannot load it."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(self._checkpoint.tokenizer_folder), trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, ImportError, AttributeError):
            return None
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids
