"""From a model's name to a loaded model: hub, checkpoint, conversion, cache, fingerprint, loader.

Does not know the scheduler.
"""
