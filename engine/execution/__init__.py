"""Computes a step: executors, warm-up, KV cache sizing, token masks of grammars, verification of drafts,
logprobs.

Does not know requests, stop conditions or text, nor how a step was decided.
"""
