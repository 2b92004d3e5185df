"""The operations that models are made of, one implementation per kind of device; they own the KV cache.

Does not know model architectures, sequences, scheduling or sampling.
"""
