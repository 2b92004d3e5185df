"""Computes a step: model runner, KV cache sizing, token masks, verification of drafts, the null executor.

Does not know requests, queues or text.
"""
