"""Finds and loads a model by its name: hub, checkpoint, conversion, cache, fingerprint, loaders.

Does not know the scheduler, requests or the engine.
"""
