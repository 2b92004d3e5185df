"""Between text and tokens: tokenizers, chat templates, the incremental detokenizer, end and bad-word tokens.

Does not know models, devices or sequences.
"""
