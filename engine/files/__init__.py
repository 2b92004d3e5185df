"""Readers of the files of a checkpoint: JSON, safetensors, GGUF.

Does not know model architectures, the engine's tokenizers, devices, or where checkpoints come from.
"""
