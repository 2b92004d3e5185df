"""Readers of GGUF files: header, parts, tokenizer metadata, pre-tokenizers."""
