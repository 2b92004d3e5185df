"""Converts GGUF files to the Hugging Face format: config.json and model.safetensors.

`families.py` has one entry for each architecture of GGUF. Does not know the engine's models.
"""
