"""Model architectures: configuration, rotary embedding, decoder, required tensors, registry.

Does not know where checkpoints come from, the scheduler, KV cache blocks or sampling.
"""
