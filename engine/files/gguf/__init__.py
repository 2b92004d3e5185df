"""Readers of GGUF files: header, split files, tokenizer, pre-tokenizers. Does not read the weights."""
