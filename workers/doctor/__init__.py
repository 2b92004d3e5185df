"""The checks of ``pagefleet doctor`` for workers: settings, processor, torch, CUDA, model and memory.

Does not know Celery or the running worker.
"""
