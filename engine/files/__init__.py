"""Readers of the files of a checkpoint: JSON, safetensors, GGUF; a writer of safetensors files.

Does not know model architectures, the engine's tokenizers, devices, or where checkpoints come from.
"""
