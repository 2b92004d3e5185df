"""Between text and tokens: tokenizers, chat templates, the incremental detokenizer, stop tokens.

Does not know models, devices or sequences.
"""
