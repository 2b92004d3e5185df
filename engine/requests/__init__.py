"""From a request to its sequences, and from their tokens to its output: checks, stop conditions, text.

Does not know tensors or scheduling.
"""
