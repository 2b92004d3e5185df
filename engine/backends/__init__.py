"""The operations that a model is made of, once for each kind of device.

Does not know models, sequences or sampling.
"""
