"""Readers of checkpoint files: JSON, safetensors, GGUF.

Does not know models, tokenizers or devices.
"""
