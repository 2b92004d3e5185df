"""Readers of GGUF files: header, split files, weights, tokenizer, pre-tokenizers.

Does not know model architectures.
"""
