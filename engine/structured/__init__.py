"""Structured output: grammars, JSON schemas, regular expressions, and the masks that they give.

Does not know the scheduler or torch.
"""
