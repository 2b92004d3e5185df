"""Tokenizers of vocabularies that are not a tokenizer.json: SentencePiece, tekken and tiktoken files.

Does not know checkpoints, chat templates or the configuration of transformers.
"""
