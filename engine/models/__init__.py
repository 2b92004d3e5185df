"""Model architectures: configuration, rotary embedding, decoder, tensor names.

Does not know checkpoints' folders, the scheduler or sampling.
"""
