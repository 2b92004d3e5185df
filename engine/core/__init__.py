"""Scheduling: sequences, KV cache blocks, the token budget, speculative drafts, stop conditions, outputs.

Works on lists and counts. Does not know torch, weights, devices or how a step is computed.
"""
