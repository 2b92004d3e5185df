"""The scheduler's world: sequences, KV blocks, token budgets, stop conditions, speculation.

Lists and counts only. It does not know torch, weights or devices.
"""
